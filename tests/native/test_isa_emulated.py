"""The AVX-512 and AMX kernels, run on an emulation of their intrinsics, against the portable ones."""

from __future__ import annotations

import numpy as np
import pytest
from emulated_kernels import emulated_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_blocks import AS_BF16, FLOAT_ROWS, FORMATS, block_of, random_rows, random_weight, same_bits

from kvern import _native
from kvern.formats import weights

EMULATED = ("avx512vnni", "amx")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif("avx2" not in _native.available_isas(), reason="the emulation needs AVX2"),
]


@pytest.fixture(scope="module")
def emulated():
    return emulated_kernels()


def test_the_emulated_sets_are_there(emulated):
    assert emulated.available_isas() == ["amx", "avx512vnni", "avx2", "portable"]


@pytest.mark.parametrize("name", FORMATS)
def test_bits_equal_the_portable_ones(emulated, name):
    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 4), st.integers(1, 3), st.integers(0, 9999))
    def check(m, n, blocks, threads, seed):
        k = blocks * block_of(name) if block_of(name) > 1 else blocks * 37 + seed % 37
        weight, x = random_weight(emulated, name, n, k, seed), random_rows(m, k, seed)
        expected = emulated.linear(x, weight, isa="portable")
        for isa in EMULATED:
            if not (name in AS_BF16 and isa == "amx"):
                assert same_bits(emulated.linear(x, weight, isa=isa, threads=threads), expected), isa

    check()


@pytest.mark.parametrize("isa", EMULATED)
@pytest.mark.parametrize("kind", ["group", "row", "bf16"])
def test_encoded_rows_equal_the_portable_ones(emulated, isa, kind):
    x = random_rows(9, 320)
    x[3, 7] = np.nan
    a, b = emulated.quantize_rows(x, kind, isa=isa), emulated.quantize_rows(x, kind, isa="portable")
    for name, values in a.items():
        assert np.array_equal(values, b[name], equal_nan=values.dtype.kind == "f"), name


@pytest.mark.parametrize(
    ("name", "m", "n", "k"),
    [
        ("bf16", 1, 16, 32),
        ("bf16", 5, 37, 100),
        ("bf16", 16, 64, 512),
        ("bf16", 33, 70, 768),
        ("w4a16", 1, 16, 64),
        ("w4a16", 5, 37, 192),
        ("w4a16", 49, 70, 768),
    ],
)
def test_bf16_tiles_are_close_and_do_not_depend_on_rows(emulated, name, m, n, k):
    """Inputs are rounded to bf16; sums then lose only float32 rounding."""
    weight, x = random_weight(emulated, name, n, k), random_rows(m, k)
    y = emulated.linear(x, weight, isa="amx")
    halves = emulated.quantize_rows(x, "bf16")["bf16"].astype(np.uint32) << 16
    seen = halves.view(np.float32).astype(np.float64)
    w = weight.rows(np.arange(n, dtype=np.int32)).astype(np.float64)
    assert (np.abs(y - seen @ w.T) <= (np.abs(seen) @ np.abs(w).T) * 2.0**-22 * max(8, k / 8)).all()
    assert same_bits(np.concatenate([emulated.linear(x[i : i + 1], weight, isa="amx") for i in range(m)]), y)


@pytest.mark.parametrize("name", ["q4_1", "w8a8"])
@pytest.mark.parametrize(("m", "n"), [(8, 32), (33, 70), (49, 33)])
def test_bias_is_added_last_to_tiles(emulated, name, m, n):
    """Whole and partial blocks of rows, an odd last tile, and outputs that do not fill it."""
    weight, x = random_weight(emulated, name, n, 256), random_rows(m, 256)
    bias = np.random.default_rng(5).standard_normal(n, dtype=np.float32)
    expected = emulated.linear(x, weight, isa="portable") + bias
    assert same_bits(emulated.linear(x, weight, bias=bias, isa="amx"), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_tiles_serve_eight_rows_and_more(emulated, name):
    weight = random_weight(emulated, name, 40, 256)
    for rows, few in ((1, True), (7, True), (8, False), (16, False), (40, False)):
        tiles = name in AS_BF16 or (name not in FLOAT_ROWS and not few)
        assert emulated.linear_route(random_rows(rows, 256), weight, isa="amx") == ("tiles" if tiles else "rows")
    many = "panel" if name == "qoq" else "rows"
    assert emulated.linear_route(random_rows(16, 256), weight, isa="avx512vnni") == many


@pytest.mark.parametrize("m", [15, 16, 27, 70])
def test_panels_of_long_rows(emulated, m):
    """More inputs than a panel holds, an odd number of groups, more rows than wait for a panel."""
    k = 27 * 64
    weight, x = random_weight(emulated, "qoq", 21, k), random_rows(m, k)
    expected = emulated.linear(x, weight, isa="portable")
    for isa in EMULATED:
        assert same_bits(emulated.linear(x, weight, isa=isa), expected), isa


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("w6", "int6 group 64"),
        *((f"bipolar{n}", f"bit planes{m}") for n in (1, 2, 3, 4) for m in (" 1", "", " 3", " 4")),
    ],
)
def test_other_forms_of_inputs_give_the_portable_bits(emulated, name, activation):
    for m, n, groups in ((1, 16, 1), (3, 37, 5), (21, 18, 3)):
        values = np.random.default_rng(m).standard_normal((n, 64 * groups), dtype=np.float32)
        weight = emulated.PackedWeight.from_blocks(name, weights.get(name).encode(values), n, 64 * groups)
        x = random_rows(m, 64 * groups)
        expected = emulated.linear(x, weight, isa="portable", activation=activation)
        for isa in EMULATED:
            assert same_bits(emulated.linear(x, weight, isa=isa, activation=activation), expected), (isa, m)
