"""What may import what: the contracts of pyproject.toml hold, and the thinking wing needs no arrays."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kvern

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(kvern.__file__).parent
THINKING = ("core", "policies", "sched", "kv")


def modules_of(room: str) -> list[str]:
    base = PACKAGE / room
    files = list(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]
    names = [".".join(("kvern", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in files if path.exists()]
    return sorted(name.removesuffix(".__init__") for name in names)


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def test_import_contracts_hold() -> None:
    """The checkout must be what is imported: contracts on an installed copy would test yesterday's tree."""
    tool = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("import-linter is not installed; `make check` runs it")
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": str(Path(sys.executable).parent)}
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_the_thinking_wing_imports_without_arrays() -> None:
    names = [name for room in (*THINKING, "engine/core") for name in modules_of(room)]
    assert len(names) > 10
    lines = ["import importlib, sys"]
    lines += [
        f"sys.modules[{name!r}] = None" for name in ("numpy", "kvern._native", "kvern.runtime", "kvern.kernels")
    ]
    lines += [f"importlib.import_module({name!r})" for name in names]
    done = run_python("-c", "\n".join(lines))
    assert done.returncode == 0, done.stderr


def test_every_module_imports_with_asserts_stripped() -> None:
    """Nothing may rely on ``assert`` for its effect, and every module must import by itself."""
    names = modules_of(".")
    lines = ["import importlib"] + [
        f"importlib.import_module({name!r})" for name in names if name != "kvern.__main__"
    ]
    done = run_python("-O", "-W", "error", "-c", "\n".join(lines))
    assert done.returncode == 0, done.stderr


def test_no_module_of_kvern_needs_torch() -> None:
    """The core install stays small: test-only packages may not be imported, lazily or not, on the way in."""
    names = modules_of(".")
    lines = ["import importlib, sys"]
    lines += [f"sys.modules[{name!r}] = None" for name in ("torch", "transformers", "gguf", "safetensors", "httpx")]
    lines += [f"importlib.import_module({name!r})" for name in names if name != "kvern.__main__"]
    done = run_python("-c", "\n".join(lines))
    assert done.returncode == 0, done.stderr
