"""The AVX-512 and AMX kernels, run on an emulation of their intrinsics, against the portable ones."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_blocks import BLOCKS, FORMATS, block_of, random_rows, random_weight, same_bits

from kvern import _native

ROOT = Path(__file__).parents[2]
EMULATED = ("avx512vnni", "amx")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif("avx2" not in _native.available_isas(), reason="the emulation needs AVX2"),
]


def built_module() -> Path:
    """Build (again only what changed) under build/emulated and return the module's path."""
    beside = str(Path(sys.executable).parent)
    tools = [shutil.which(name) or shutil.which(name, path=beside) for name in ("cmake", "ninja", "c++")]
    if not all(tools) or importlib.util.find_spec("nanobind") is None:
        pytest.skip("cmake, ninja, nanobind and a C++ compiler are needed to build the emulated kernels")
    cmake, ninja, _ = tools
    build = ROOT / "build" / "emulated"
    configure = [cmake, "-S", ROOT / "native" / "tests" / "emulated", "-B", build, "-G", "Ninja",
                 f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}"]  # fmt: skip
    for command in (configure, [cmake, "--build", build, "-j2"]):
        answer = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stdout[-4000:] + answer.stderr[-4000:]
    return build / f"_native_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"


@pytest.fixture(scope="module")
def emulated():
    path = built_module()
    spec = importlib.util.spec_from_file_location("_native_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_emulated_sets_are_there(emulated):
    assert emulated.available_isas() == ["amx", "avx512vnni", "avx2", "portable"]


@pytest.mark.parametrize("name", FORMATS)
def test_bits_equal_the_portable_ones(emulated, name):
    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 4), st.integers(1, 3), st.integers(0, 9999))
    def check(m, n, blocks, threads, seed):
        k = blocks * block_of(name) if name in BLOCKS else blocks * 37 + seed % 37
        weight, x = random_weight(emulated, name, n, k, seed), random_rows(m, k, seed)
        expected = emulated.linear(x, weight, isa="portable")
        for isa in EMULATED:
            if (name, isa) != ("bf16", "amx"):
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


@pytest.mark.parametrize(("m", "n", "k"), [(1, 16, 32), (5, 37, 100), (16, 64, 512), (33, 70, 768)])
def test_bf16_tiles_are_close_and_do_not_depend_on_rows(emulated, m, n, k):
    """Inputs are rounded to bf16; sums then lose only float32 rounding."""
    weight, x = random_weight(emulated, "bf16", n, k), random_rows(m, k)
    y = emulated.linear(x, weight, isa="amx")
    halves = emulated.quantize_rows(x, "bf16")["bf16"].astype(np.uint32) << 16
    seen = halves.view(np.float32).astype(np.float64)
    w = weight.rows(np.arange(n, dtype=np.int32)).astype(np.float64)
    assert (np.abs(y - seen @ w.T) <= (np.abs(seen) @ np.abs(w).T) * 2.0**-22 * max(8, k / 8)).all()
    assert same_bits(np.concatenate([emulated.linear(x[i : i + 1], weight, isa="amx") for i in range(m)]), y)


@pytest.mark.parametrize("name", FORMATS)
def test_tiles_serve_eight_rows_and_more(emulated, name):
    weight = random_weight(emulated, name, 40, 256)
    for rows, few in ((1, True), (7, True), (8, False), (16, False), (40, False)):
        tiles = name == "bf16" or (name not in ("f32", "f16") and not few)
        assert emulated.linear_route(random_rows(rows, 256), weight, isa="amx") == ("tiles" if tiles else "rows")
    assert emulated.linear_route(random_rows(16, 256), weight, isa="avx512vnni") == "rows"
