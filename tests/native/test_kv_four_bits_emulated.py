"""The 4-bit KV kernels for AVX-512 and AMX, run on an emulation of their intrinsics, against the portable ones."""

from __future__ import annotations

import pytest
from attention_cases import Case, run
from emulated_kernels import emulated_kernels

from kvern import _native

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif("avx2" not in _native.available_isas(), reason="the emulation needs AVX2"),
]
SHAPES = [(9, 3, 64), (3, 1, 80), (4, 1, 256), (2, 2, 20), (3, 1, 12)]
CONTEXTS = [(1, 1, 0), (200, 33, 0), (600, 40, 0), (600, 9, 130)]


@pytest.fixture(scope="module")
def emulated():
    return emulated_kernels()


@pytest.mark.parametrize(
    "kv_format", ["kv4", "kv4-hadamard", "kv4-token", "kv8/kv4-token", "kv4/kv8", "bf16/kv4-token"]
)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
def test_portable_bits(emulated, heads, kv_heads, dim, kv_format):
    isas = ["avx512vnni"]
    if "bf16" not in kv_format and kv_format not in ("kv4", "kv4/kv8"):
        isas.append("amx")  # bf16 tiles, which the tail is read with, round otherwise
    for tokens, rows, window in CONTEXTS:
        case = Case(kv_format, heads, kv_heads, dim, tokens, rows, window)
        wanted = run(emulated, case, "portable", 8).tobytes()
        for isa in isas:
            assert run(emulated, case, isa, 8).tobytes() == wanted, isa
