"""The two commands' own tools: what is missing is named, extras are read from the one place they are written."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_missing_compiler_is_named_with_its_cure(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "prerequisites.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert done.returncode == 1
    assert "apt install g++" in done.stderr


def test_a_missing_venv_module_is_named_with_its_cure() -> None:
    code = (
        "import importlib.util, runpy, sys\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'ensurepip' else real(name, *rest)\n"
        f"runpy.run_path({str(ROOT / 'tools' / 'prerequisites.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr


def test_extras_come_from_pyproject() -> None:
    extra = load("extra")
    found = extra.requirements(["check", "build-system"], ROOT / "pyproject.toml")
    assert any(line.startswith("ruff") for line in found)
    assert any(line.startswith("numpy") for line in found)
    assert any(line.startswith("nanobind") for line in found)


def test_the_ci_command_runs_checks_and_tests() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make check" in lines and "make test" in lines
    dry = subprocess.run(["make", "--dry-run", "test"], cwd=ROOT, capture_output=True, text=True)
    assert dry.returncode == 0 and "-m pytest" in dry.stdout


def test_the_command_reference_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "cli_reference.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
