"""qoq matrices: the kernels compute exactly what its reference says, on every instruction set and for any rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_blocks import random_qoq, random_rows, same_bits

from kvern import _native
from kvern.formats import int8_codes
from kvern.formats.weights import qoq


def packed(raw: np.ndarray, k: int):
    return _native.PackedWeight.from_blocks("qoq", raw, len(raw), k)


def by_reference(x: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Whole numbers over all of a row, then the activations' scale, then the weights'."""
    codes, s2, zeros, s1 = qoq.split(raw)
    values, _ = qoq.rebuilt(codes, s2, zeros)
    inputs, scales = int8_codes.int8_row(x)
    whole = (inputs.astype(np.int64) @ values.astype(np.int64).T).astype(np.float32)
    return (whole * scales[:, None]) * s1[None]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 10), st.integers(1, 3), st.integers(0, 9999))
def test_bits_are_those_of_the_reference(m, n, groups, threads, seed):
    raw, x = random_qoq(n, groups * 64, seed), random_rows(m, groups * 64, seed)
    weight, expected = packed(raw, groups * 64), by_reference(x, raw)
    for isa in _native.available_isas():
        assert same_bits(_native.linear(x, weight, isa=isa, threads=threads), expected), isa
        assert same_bits(_native.linear(x[-1:], weight, isa=isa), expected[-1:]), isa


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(1, 9), st.integers(0, 9999))
def test_rows_read_back_are_those_of_the_reference(n, groups, seed):
    raw = random_qoq(n, groups * 64, seed)
    found = packed(raw, groups * 64).rows(np.arange(n, dtype=np.int32))
    assert same_bits(found, qoq.FORMAT.decode(raw, n, groups * 64))


def test_rows_are_reordered_on_the_way():
    raw = random_qoq(40, 192)
    order = np.random.default_rng(3).permutation(40).astype(np.int32)[:37]
    mixed = _native.PackedWeight.from_blocks("qoq", raw, 37, 192, rows=order)
    assert same_bits(mixed.rows(np.arange(37, dtype=np.int32)), packed(raw, 192).rows(order))


@pytest.mark.parametrize(("code", "s2", "zero"), [(15, 16, 113), (0, 16, 127), (15, 8, 0), (0, 1, 0), (15, 17, 128)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_numbers_do_not_overflow(code, s2, zero, sign):
    """All codes and inputs at their ends, K at its limit for whole rows of one kernel call."""
    k = 4096
    numbers = (np.full((17, k // 64), value, np.uint8) for value in (s2, zero))
    raw = qoq.pack(np.full((17, k), code, np.uint8), *numbers, np.ones(17, np.float32))
    x = np.full((5, k), sign * 127, np.float32)
    for isa in _native.available_isas():
        assert (_native.linear(x, packed(raw, k), isa=isa) == sign * 127 * k * (code * s2 - zero)).all(), isa


@pytest.mark.parametrize(("code", "s2", "zero"), [(15, 16, 112), (15, 18, 150), (15, 255, 255), (0, 3, 128)])
def test_a_damaged_block_makes_its_output_nan_and_no_other(code, s2, zero):
    raw = random_qoq(20, 128)
    clean, x = packed(raw, 128), random_rows(9, 128)
    raw[7, qoq.BLOCK_BYTES : 2 * qoq.BLOCK_BYTES] = [s2, zero, *[code * 17] * 32]
    damaged = packed(raw, 128)
    for isa in _native.available_isas():
        y = _native.linear(x, damaged, isa=isa)
        assert np.isnan(y[:, 7]).all()
        assert same_bits(np.delete(y, 7, 1), np.delete(_native.linear(x, clean, isa=isa), 7, 1))
    assert np.isnan(damaged.row(7)).all()
    assert np.isnan(qoq.FORMAT.decode(raw, 20, 128)).any(axis=1).nonzero()[0].tolist() == [7]


def test_inputs_that_are_not_finite_show():
    raw, x = random_qoq(20, 128), random_rows(6, 128)
    expected = by_reference(x, raw)
    x[2, 100] = np.inf
    for isa in _native.available_isas():
        y = _native.linear(x, packed(raw, 128), isa=isa)
        assert np.isnan(y[2]).all()
        assert same_bits(np.delete(y, 2, 0), np.delete(expected, 2, 0))


@pytest.mark.parametrize(("n", "k", "error"), [
    (4, 96, "multiple of 64"), (4, 0, "at least 1"), (0, 128, "at least 1"), (5, 128, "whole rows"),
    (4, 65536 + 64, "at most 65536"),
])  # fmt: skip
def test_wrong_shapes_are_refused(n, k, error):
    with pytest.raises(ValueError, match=error):
        _native.PackedWeight.from_blocks("qoq", random_qoq(4, 128), n, k)


def test_a_packed_matrix_is_as_small_as_its_file():
    raw = random_qoq(64, 2048)
    assert packed(raw, 2048).nbytes <= 1.01 * raw.size
