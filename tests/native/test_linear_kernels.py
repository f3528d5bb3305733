"""Linear layers: right against float64, and the same bits for any rows, threads and instruction set."""

from __future__ import annotations

import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_blocks import (
    AS_BF16,
    FLOAT_ROWS,
    FORMATS,
    SYMMETRIC,
    block_of,
    mixed_header_of,
    random_rows,
    random_weight,
    same_bits,
)

from kvern import _native
from kvern.formats import activations, int8_codes, weights

SHAPES = st.tuples(
    st.sampled_from(FORMATS), st.integers(1, 40), st.integers(1, 70), st.integers(1, 5), st.integers(0, 9999)
)


def inputs_of(name: str, blocks: int, seed: int) -> int:
    """A number of inputs: a multiple of the block, or anything for formats without blocks."""
    return blocks * block_of(name) if block_of(name) > 1 else blocks * 37 + seed % 37


def decoded_rows(name: str, x: np.ndarray, isa: str) -> np.ndarray:
    """The inputs as the kernel sees them, float64."""
    if name in FLOAT_ROWS or (name in AS_BF16 and isa != "amx"):
        return x.astype(np.float64)
    if name in AS_BF16:
        return (_native.quantize_rows(x, "bf16")["bf16"].astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if name in SYMMETRIC:
        form = activations.get(weights.get(name).activation)
        return form.rounded(x, mixed_header_of(x.shape[1])).astype(np.float64)
    rows = _native.quantize_rows(x, "row" if name in ("w8a8", "qoq") else "group", isa=isa)
    scales = rows["scales"].astype(np.float64)
    return (rows["codes"].reshape(*scales.shape, -1) * scales[..., None]).reshape(x.shape)


@settings(max_examples=120, deadline=None)
@given(SHAPES)
def test_close_to_float64(shape):
    """Float folds only lose rounding: 2^-22 for every addend of magnitude |x| |w|, at most K / 8 of them."""
    name, m, n, blocks, seed = shape
    k = inputs_of(name, blocks, seed)
    weight, x = random_weight(_native, name, n, k, seed), random_rows(m, k, seed)
    w = weight.rows(np.arange(n, dtype=np.int32)).astype(np.float64)
    for isa in _native.available_isas():
        seen = decoded_rows(name, x, isa)
        bound = (np.abs(seen) @ np.abs(w).T) * 2.0**-22 * max(8, k / 8) + 1e-30
        if name in ("q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", *SYMMETRIC):  # d * code and m may cancel
            bound *= 8
        assert (np.abs(_native.linear(x, weight, isa=isa) - seen @ w.T) <= bound).all(), isa


@settings(max_examples=120, deadline=None)
@given(SHAPES, st.integers(1, 3))
def test_bits_do_not_depend_on_rows_threads_or_instruction_set(shape, threads):
    name, m, n, blocks, seed = shape
    k = inputs_of(name, blocks, seed)
    weight, x = random_weight(_native, name, n, k, seed), random_rows(m, k, seed)
    expected = _native.linear(x, weight)
    assert same_bits(_native.linear(x, weight, threads=threads), expected)
    one_by_one = np.concatenate([_native.linear(x[i : i + 1], weight) for i in range(m)])
    assert same_bits(one_by_one, expected)
    for isa in _native.available_isas():
        if name in AS_BF16 and "amx" in (isa, _native.isa()):
            continue
        assert same_bits(_native.linear(x, weight, isa=isa), expected), isa


@pytest.mark.parametrize("name", FORMATS)
def test_many_rows_in_chunks(name):
    """More rows than one chunk of the driver: chunk borders leave no mark."""
    weight, x = random_weight(_native, name, 35, 1536), random_rows(300, 1536)
    whole = _native.linear(x, weight, threads=2)
    assert same_bits(whole[250:290], _native.linear(np.ascontiguousarray(x[250:290]), weight))


@pytest.mark.parametrize("k", [1, 16, 31, 32, 100, 575])
def test_rounded_to_bf16_as_torch_rounds(k):
    """Nearest, ties to even, on every number of inputs; a NaN stays one, and no number becomes one."""
    rng = np.random.default_rng(k)
    x = rng.integers(0, 2**32, (3, k), dtype=np.uint64).astype(np.uint32)
    x[0, ::2] = (x[0, ::2] & np.uint32(0xFFFF0000)) | np.uint32(0x8000)  # ties
    x[1, ::3] = np.array([0x7F800001, 0xFFFFFFFF, 0x7F800000, 0x7F7FFFFF], np.uint32)[rng.integers(0, 4)]
    even = (x >> 16) & 1
    rounded = ((x.astype(np.uint64) + 0x7FFF + even) >> 16).astype(np.uint16)
    nan = (x & 0x7FFFFFFF) > 0x7F800000
    expected = np.where(nan, (x >> 16 | 64).astype(np.uint16), rounded)
    for isa in _native.available_isas():
        assert np.array_equal(_native.quantize_rows(x.view(np.float32), "bf16", isa=isa)["bf16"], expected), isa


@pytest.mark.parametrize("name", FORMATS)
def test_bias_is_added_last(name):
    weight, x = random_weight(_native, name, 21, 256), random_rows(5, 256)
    bias = np.random.default_rng(5).standard_normal(21, dtype=np.float32)
    assert same_bits(_native.linear(x, weight, bias=bias), _native.linear(x, weight) + bias)


def folded(x: np.ndarray, d: np.ndarray, codes: np.ndarray, *, descending: bool) -> np.ndarray:
    """q8_0 in NumPy, with the documented float order or with its groups reversed; float64 stands in for fma."""
    rows = _native.quantize_rows(x)
    groups = rows["scales"].shape[1]
    acc = np.zeros((len(x), len(d)), np.float32)
    for g in reversed(range(groups)) if descending else range(groups):
        a = rows["codes"][:, 32 * g : 32 * g + 32].astype(np.int32)
        dot = (a @ codes[:, g].astype(np.int32).T).astype(np.float32)
        scale = rows["scales"][:, g, None] * d[:, g][None]
        acc = (dot.astype(np.float64) * scale + acc).astype(np.float32)
    return acc


def test_groups_fold_in_the_documented_order_and_another_order_shows():
    n, k = 33, 1024
    rng = np.random.default_rng(0)
    d = rng.uniform(0.001, 0.02, (n, k // 32)).astype(np.float16)
    codes = rng.integers(-128, 128, (n, k // 32, 32), dtype=np.int8)
    raw = np.concatenate([d[..., None].view(np.uint8), codes.view(np.uint8)], axis=2).reshape(n, -1)
    weight, x = _native.PackedWeight.from_blocks("q8_0", np.ascontiguousarray(raw), n, k), random_rows(9, k)
    y, d = _native.linear(x, weight), d.astype(np.float32)
    assert same_bits(folded(x, d, codes, descending=False), y)
    assert (folded(x, d, codes, descending=True) != y).mean() > 0.3


@pytest.mark.parametrize("k", [32, 96, 320])
def test_quantised_groups_equal_the_reference(k):
    x = random_rows(7, k)
    x[2, :32] = 0
    x[3, 5], x[4, 6] = np.nan, -np.inf
    codes, scales = int8_codes.int8_group_32(x)
    for isa in _native.available_isas():
        rows = _native.quantize_rows(x, isa=isa, threads=2)
        assert np.array_equal(rows["codes"], codes)
        assert np.array_equal(rows["scales"], scales, equal_nan=True)
        halves = codes.reshape(7, -1, 16).sum(axis=-1)
        assert np.array_equal(rows["half_sums"], halves)
        assert np.array_equal(rows["sums"], halves.reshape(7, -1, 2).sum(axis=-1))
        assert np.array_equal(rows["scaled_sums"], scales * rows["sums"].astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("k", [1, 15, 17, 64, 100])
def test_quantised_rows_equal_the_reference(k):
    x = random_rows(5, k)
    x[1] = 0
    codes, scales = int8_codes.int8_row(x)
    for isa in _native.available_isas():
        rows = _native.quantize_rows(x, "row", isa=isa)
        assert np.array_equal(rows["codes"], codes)
        assert np.array_equal(rows["scales"][:, 0], scales)
        assert np.array_equal(rows["sums"][:, 0], codes.sum(axis=1))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_shows_in_its_outputs_alone(name, bad):
    weight, x = random_weight(_native, name, 20, 256), random_rows(6, 256)
    clean = _native.linear(x, weight)
    x[2, 100] = bad
    for isa in _native.available_isas():
        y = _native.linear(x, weight, isa=isa)
        assert not np.isfinite(y[2]).any()
        if not (name in AS_BF16 and "amx" in (isa, _native.isa())):
            assert same_bits(np.delete(y, 2, 0), np.delete(clean, 2, 0))


@pytest.mark.parametrize("name", ["q8_0", "q6_k", "q5_1", "q4_1", "w8a8"])
def test_extreme_codes_do_not_saturate(name):
    """All codes and inputs at their largest: sums stay exact, where miscounted int16 steps would overflow."""
    k = 512
    if name == "w8a8":
        weight = _native.PackedWeight.from_float(name, np.full((16, k), -3, np.float32))
    else:
        size = {"q8_0": 34, "q6_k": 210, "q5_1": 24, "q4_1": 20}[name]
        raw = np.full((16 * k // block_of(name), size), 0x80 if name == "q8_0" else 0xFF, np.uint8)
        one = np.frombuffer(np.float16(1).tobytes(), np.uint8)
        for at in (208,) if name == "q6_k" else (0, 2) if name != "q8_0" else (0,):
            raw[:, at : at + 2] = one
        if name == "q6_k":
            raw[:, 192:208] = 0x80
        weight = _native.PackedWeight.from_blocks(name, raw.reshape(16, -1), 16, k)
    value = Fraction(float(weight.row(0)[0]))
    for sign in (1, -1):
        x = np.full((13, k), sign * 127, np.float32)  # blocks of 8, 4 and 1 rows, and expanded tiles
        for isa in _native.available_isas():
            assert np.allclose(_native.linear(x, weight, isa=isa), float(value * sign * 127 * k), rtol=1e-6)


def test_the_route_is_told():
    weight = random_weight(_native, "q4_0", 16, 64)
    for isa in _native.available_isas():
        for rows in (1, 7, 8, 40):
            expected = "tiles" if isa == "amx" and rows >= 8 else "rows"
            assert _native.linear_route(random_rows(rows, 64), weight, isa=isa) == expected


def best_rate(work, operations: float) -> float:
    def once() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return operations / min(once() for _ in range(30))


@pytest.mark.skipif(_native.multiply_add_peak(1) == 0, reason="no peak is measured for this instruction set")
def test_no_kernel_beats_the_measured_peak():
    """The ceiling of the benchmark once had its multiplies hoisted by the compiler and lay below the kernels."""
    pool, rows = _native.Pool(1), 32
    weight, x = random_weight(_native, "q4_0", 256, 512), random_rows(rows, 512)
    done = _native.multiply_add_peak(20_000)
    peak = best_rate(lambda: _native.multiply_add_peak(20_000), done)
    if _native.isa() != "amx":
        assert best_rate(lambda: _native.repeat_linear(x, weight, 4, None, pool), 8 * rows * 256 * 512) < peak


def test_wrong_shapes_are_refused():
    weight = random_weight(_native, "q4_0", 16, 64)
    with pytest.raises(ValueError, match="63 columns"):
        _native.linear(np.zeros((2, 63), np.float32), weight)
    with pytest.raises(ValueError, match="bias must hold 16"):
        _native.linear(np.zeros((2, 64), np.float32), weight, bias=np.zeros(15, np.float32))
    with pytest.raises(ValueError, match="groups of 32"):
        _native.quantize_rows(np.zeros((2, 33), np.float32))
    assert _native.linear(np.zeros((0, 64), np.float32), weight).shape == (0, 16)
