"""The kernels with AVX-512 and AMX emulated on AVX2, built from native/tests/emulated when a test first asks."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


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


@lru_cache(maxsize=1)
def emulated_kernels() -> ModuleType:
    """The module; skips the test that asks where it cannot be built."""
    spec = importlib.util.spec_from_file_location("_native_emulated", built_module())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
