"""One table of kernels is chosen at start; KVERN_ISA may ask for a lesser one, never for one that is not there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from weight_blocks import random_rows, random_weight

from kvern import _native

ALL = ["amx", "avx512vnni", "avx2", "portable"]


def isa_of_a_new_process(name: str) -> subprocess.CompletedProcess[str]:
    program = "from kvern import _native; print(_native.isa())"
    environment = {**os.environ, "KVERN_ISA": name, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )


def test_the_best_comes_first_and_portable_last():
    available = _native.available_isas()
    assert [name for name in ALL if name in available] == available
    assert available[-1] == "portable"


def test_each_available_one_can_be_asked_for():
    for name in _native.available_isas():
        assert isa_of_a_new_process(name).stdout.strip() == name
    assert isa_of_a_new_process("").stdout.strip() == _native.available_isas()[0]


@pytest.mark.parametrize("name", [*(n for n in ALL if n not in _native.available_isas()), "sse9"])
def test_one_that_is_missing_is_an_error_that_names_the_others(name):
    answer = isa_of_a_new_process(name)
    assert answer.returncode != 0
    assert f"'{name}' is not available on this machine; it has {' '.join(_native.available_isas())}" in answer.stderr
    with pytest.raises(RuntimeError, match="not available"):
        _native.linear(random_rows(1, 64), random_weight(_native, "q4_0", 16, 64), isa=name)


def test_processor_flags_agree():
    """What /proc/cpuinfo says decides which tables exist."""
    try:
        with open("/proc/cpuinfo") as lines:
            flags = next(line for line in lines if line.startswith("flags")).split()
    except (OSError, StopIteration):
        pytest.skip("no /proc/cpuinfo with x86 flags")
    available = _native.available_isas()
    assert ("avx2" in available) == ({"avx2", "fma", "f16c"} <= set(flags))
    assert ("avx512vnni" in available) == (
        {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"} <= set(flags)
    )
    if "amx" in available:
        assert {"amx_tile", "amx_int8", "amx_bf16", "avx512_bf16"} <= set(flags)
