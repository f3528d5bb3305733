"""The attention kernels for AVX-512 and AMX, run on an emulation of their intrinsics, against the portable ones."""

from __future__ import annotations

import numpy as np
import pytest
from attention_cases import Case, check, run
from emulated_kernels import emulated_kernels

from kvern import _native

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif("avx2" not in _native.available_isas(), reason="the emulation needs AVX2"),
]
SHAPES = [(9, 3, 64), (4, 1, 256), (2, 2, 20), (14, 2, 16), (3, 1, 12), (5, 1, 44)]
CONTEXTS = [(1, 1, 0), (200, 33, 0), (600, 40, 0), (600, 9, 130)]


@pytest.fixture(scope="module")
def emulated():
    return emulated_kernels()


@pytest.mark.parametrize("kv_format", ["bf16", "kv8"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
def test_avx512_has_the_portable_bits(emulated, heads, kv_heads, dim, kv_format):
    for tokens, rows, window in CONTEXTS:
        case = Case(kv_format, heads, kv_heads, dim, tokens, rows, window)
        assert run(emulated, case, "avx512vnni", 8).tobytes() == run(emulated, case, "portable", 8).tobytes()


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
def test_int8_tiles_have_the_portable_bits(emulated, heads, kv_heads, dim):
    for tokens, rows, window in CONTEXTS:
        case = Case("kv8", heads, kv_heads, dim, tokens, rows, window)
        assert run(emulated, case, "amx", 8).tobytes() == run(emulated, case, "portable", 8).tobytes()


@pytest.mark.parametrize("kv_format", ["bf16", "bf16/kv8", "kv8/bf16"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
def test_bf16_tiles_are_close_to_float64(emulated, heads, kv_heads, dim, kv_format):
    for tokens, rows, window in CONTEXTS:
        check(emulated, Case(kv_format, heads, kv_heads, dim, tokens, rows, window), "amx", 8)


@pytest.mark.parametrize("kv_format", ["bf16", "kv8"])
def test_tiles_do_not_depend_on_rows_or_splits(emulated, kv_format):
    for window in (0, 70):
        case = Case(kv_format, 3, 1, 64, tokens=700, rows=40, window=window)
        wanted = run(emulated, case, "amx", together=1)
        for together, split in ((3, False), (11, False), (32, False), (5, True)):
            assert run(emulated, case, "amx", together, split).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("kv_format", ["bf16", "kv8"])
@pytest.mark.parametrize("isa", ["avx512vnni", "amx"])
def test_tokens_behind_the_last_one_are_not_read(emulated, kv_format, isa):
    case = Case(kv_format, 6, 2, 36, tokens=77, rows=1)
    store, q = case.store(emulated, isa), case.queries()
    wanted = store.attend(q, 76, 0.2, isa=isa)
    poison = np.full((40, 2, 36), np.nan, np.float32)
    store.append(poison, poison, isa)
    assert store.attend(q, 76, 0.2, isa=isa).tobytes() == wanted.tobytes()
    assert np.isnan(store.attend(q, 80, 0.2, isa=isa)).all()
