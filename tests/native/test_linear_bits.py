"""Products by bit planes: exact integers for every pair of widths, and the same bits on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_blocks import random_rows, same_bits

from kvern import _native
from kvern.formats import activations, bipolar, weights

FORMS = {1: "bit planes 1", 2: "bit planes", 3: "bit planes 3", 4: "bit planes 4"}
WIDTHS = st.integers(1, 4)


def odd_numbers(rng: np.random.Generator, bits: int, shape: tuple[int, int]) -> np.ndarray:
    """Bipolar values, float32: the outermost of either sign in every group of 64, so that scales are 1."""
    top = (1 << bits) - 1
    values = 2 * rng.integers(0, top + 1, shape).astype(np.float32) - top
    values[:, ::64] = top
    values[:, 1::64] = -top
    return values


@settings(max_examples=60, deadline=None)
@given(WIDTHS, WIDTHS, st.integers(1, 20), st.integers(1, 40), st.integers(1, 8), st.integers(0, 9999))
def test_plane_products_equal_whole_number_products(n_bits, m_bits, rows, outputs, groups, seed) -> None:
    """Bit for bit: all sums here are whole numbers below 2^24."""
    rng = np.random.default_rng(seed)
    w, x = odd_numbers(rng, n_bits, (outputs, 64 * groups)), odd_numbers(rng, m_bits, (rows, 64 * groups))
    name = f"bipolar{n_bits}"
    raw = weights.get(name).encode(w)
    np.testing.assert_array_equal(weights.get(name).decode(raw, *w.shape), w)
    weight = _native.PackedWeight.from_blocks(name, raw, *w.shape)
    expected = (x.astype(np.int64) @ w.astype(np.int64).T).astype(np.float32)
    for isa in _native.available_isas():
        assert same_bits(_native.linear(x, weight, isa=isa, activation=FORMS[m_bits]), expected + 0.0), isa


@settings(max_examples=60, deadline=None)
@given(WIDTHS, WIDTHS, st.integers(1, 20), st.integers(1, 40), st.integers(1, 5), st.integers(0, 9999))
def test_products_are_those_of_the_reference_in_the_same_bits_everywhere(n_bits, m_bits, m, n, groups, seed) -> None:
    k, name, form = 64 * groups, f"bipolar{n_bits}", FORMS[m_bits]
    raw = weights.get(name).encode(np.random.default_rng(seed).standard_normal((n, k), dtype=np.float32))
    weight, x = _native.PackedWeight.from_blocks(name, raw, n, k), random_rows(m, k, seed)
    seen = activations.get(form).rounded(x, np.empty(0, np.uint8)).astype(np.float64)
    matrix = weights.get(name).decode(raw, n, k).astype(np.float64)
    y = _native.linear(x, weight, activation=form)
    assert (np.abs(y - seen @ matrix.T) <= np.abs(seen) @ np.abs(matrix).T * 2.0**-20 + 1e-30).all()
    one_by_one = [_native.linear(x[i : i + 1], weight, activation=form, threads=2) for i in range(m)]
    assert same_bits(np.concatenate(one_by_one), y)
    for isa in _native.available_isas():
        assert same_bits(_native.linear(x, weight, isa=isa, activation=form), y), isa


@pytest.mark.parametrize("bits", FORMS)
def test_rows_are_cut_into_planes_as_the_reference_rounds_them(bits: int) -> None:
    """Weights that are one everywhere but at one input give back that input's value."""
    k = 128
    x = random_rows(3, k)
    x[1, :64] = 0
    seen = activations.get(FORMS[bits]).rounded(x, np.empty(0, np.uint8))
    plus = np.ones((k, k), np.float32)
    minus = plus - 2 * np.eye(k, dtype=np.float32)
    products = []
    for values in (plus, minus):
        weight = _native.PackedWeight.from_blocks("bipolar1", weights.get("bipolar1").encode(values), k, k)
        products.append(_native.linear(x, weight, activation=FORMS[bits]).astype(np.float64))
    np.testing.assert_allclose((products[0] - products[1]) / 2, seen, atol=1e-4)


@pytest.mark.parametrize("bits", FORMS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_shows_in_its_outputs_alone(bits: int, bad: float) -> None:
    raw = weights.get("bipolar2").encode(np.random.default_rng(0).standard_normal((20, 128), dtype=np.float32))
    weight, x = _native.PackedWeight.from_blocks("bipolar2", raw, 20, 128), random_rows(4, 128)
    clean = _native.linear(x, weight, activation=FORMS[bits])
    x[2, 100] = bad
    for isa in _native.available_isas():
        y = _native.linear(x, weight, isa=isa, activation=FORMS[bits])
        assert np.isnan(y[2]).all()
        assert same_bits(np.delete(y, 2, 0), np.delete(clean, 2, 0))


@pytest.mark.parametrize("bits", range(1, 9))
def test_bipolar_values_are_the_odd_numbers(bits: int) -> None:
    top = (1 << bits) - 1
    form = weights.get(f"BIPOLAR{bits}")
    values = np.resize(np.arange(-top, top + 1, 2, dtype=np.float32), (4, 64))
    values[:, :2] = top, -top
    np.testing.assert_array_equal(form.decode(form.encode(values), 4, 64), values)
    nearest = bipolar.nearest_codes(np.array([[0.4, -0.4, 1.9, -top - 5.0]], np.float32), np.float32([[1]]), bits)
    odd = 2 * nearest.astype(int) - top
    assert odd[0, 0] in (-1, 1)
    assert odd[0, 3] == -top
