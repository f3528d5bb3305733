"""Any weight format with float32 rows: the bits of an f32 weight that holds the decoded numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_blocks import FORMATS, block_of, random_rows, random_weight, same_bits

from kvern import _native


def decoded(weight):
    """The same matrix as an f32 weight."""
    return _native.PackedWeight.from_float("f32", weight.rows(np.arange(weight.n, dtype=np.int32)))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(1, 21), st.integers(1, 90), st.integers(1, 5), st.integers(0, 9999))
def test_bits_are_those_of_decoded_weights_on_every_instruction_set(name, m, n, blocks, seed):
    k = blocks * block_of(name) if block_of(name) > 1 else blocks * 37 + seed % 37
    weight, x = random_weight(_native, name, n, k, seed), random_rows(m, k, seed)
    expected = _native.linear(x, decoded(weight), isa="portable", activation="float32")
    for isa in _native.available_isas():
        got = _native.linear(x, weight, isa=isa, activation="float32", threads=1 + seed % 3)
        assert same_bits(got, expected), isa


@pytest.mark.parametrize("name", FORMATS)
def test_more_rows_than_a_block_and_every_row_alone(name):
    """Blocks have 128 rows; a row's bits are the same in all of them and on its own."""
    weight, x = random_weight(_native, name, 83, 256), random_rows(301, 256)
    whole = _native.linear(x, weight, activation="float32")
    assert same_bits(whole, _native.linear(x, decoded(weight), activation="float32"))
    for row in (0, 127, 128, 300):
        assert same_bits(whole[row : row + 1], _native.linear(x[row : row + 1], weight, activation="float32"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_served_everywhere(name):
    for isa in _native.available_isas():
        assert _native.linear_served(name, "float32", isa)


def test_bias_and_strange_numbers():
    weight, x = random_weight(_native, "q6_k", 21, 256), random_rows(5, 256)
    bias = np.random.default_rng(5).standard_normal(21, dtype=np.float32)
    clean = _native.linear(x, weight, activation="float32")
    assert same_bits(_native.linear(x, weight, bias=bias, activation="float32"), clean + bias)
    x[2, 100] = np.inf
    y = _native.linear(x, weight, activation="float32")
    assert not np.isfinite(y[2]).any()
    assert same_bits(np.delete(y, 2, 0), np.delete(clean, 2, 0))
