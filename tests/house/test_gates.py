"""The gates stand open on this tree, and each of them shuts on a planted breach."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


gates = load("gates")


def test_the_tree_passes() -> None:
    assert gates.complaints(ROOT) == []


PLANTED = {
    "function-lines": ("src/kvern/a.py", "def f():\n" + "    x = 1\n" * 60),
    "file-lines": ("src/kvern/b.py", "x = 1\n" * 501),
    "class-attributes": (
        "src/kvern/c.py",
        "class A:\n    def __init__(self):\n" + "".join(f"        self.x{i} = 1\n" for i in range(16)),
    ),
    "class-methods": ("src/kvern/d.py", "class A:\n" + "".join(f"    def f{i}(self): ...\n" for i in range(21))),
    "mixin": ("src/kvern/e.py", "class LogMixin: ...\n"),
    "unsafe-import": ("tests/f.py", "def f():\n    from pick" + "le import loads\n"),
    "unsafe-call": ("benchmarks/g.py", "ev" + "al('1')\n"),
    "global": ("src/kvern/h.py", "x = 1\ndef f():\n    global x\n    x = 2\n"),
    "hasattr": ("src/kvern/i.py", "def f(x):\n    return hasattr(x, 'y')\n"),
    "sleep": ("tests/j.py", "import time\ntime.sleep(0.1)\n"),
    "architecture-name": ("src/kvern/sched/k.py", "def f(spec):\n    return spec == 'gem" + "ma3'\n"),
    "machine-path": ("docs/l.md", "see /ro" + "ot/models\n"),
    "registry-host": ("src/kvern/m.py", "x = 'https://py" + "pi.org'\n"),
    "grab-bag": ("src/kvern/string_utils.py", "x = 1\n"),
}


@pytest.mark.parametrize("rule", sorted(PLANTED))
def test_a_planted_breach_is_found(rule: str, tmp_path: Path) -> None:
    name, text = PLANTED[rule]
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert [breach.rule for breach in gates.breaches(tmp_path, [name])] == [rule]


def test_long_native_files_and_family_names_in_them_are_found(tmp_path: Path) -> None:
    (tmp_path / "k.cpp").write_text("// lla" + "ma is fine in a comment\nint qw" + "en3 = 1;\n" + "\n" * 500)
    assert {breach.rule for breach in gates.breaches(tmp_path, ["k.cpp"])} == {"file-lines", "architecture-name"}


def test_what_resembles_a_breach_passes(tmp_path: Path) -> None:
    source = (
        '''
    """Models such as ll'''
        '''ama may be named in documentation."""
    import re

    def f(pattern: str) -> re.Pattern[str]:
        """As lla'''
        '''ma-server does."""
        return re.compile(pattern)

    NAME = "lla'''
        """ma-server"
    """
    )
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "fine.py").write_text(textwrap.dedent(source))
    assert gates.breaches(tmp_path, ["src/fine.py"]) == []


def breach(size: int) -> object:
    return gates.Breach("function-lines", "a.py", 1, "a.py::f", "f is long", size)


def allowance(size: int, reason: str = "split by the next issue") -> dict[str, object]:
    return {"rule": "function-lines", "where": "a.py::f", "size": size, "reason": reason}


def test_an_allowance_covers_its_size_and_no_more() -> None:
    assert gates.apply_allowances([breach(70)], {"most": 1, "allow": [allowance(70)]}) == []
    assert len(gates.apply_allowances([breach(71)], {"most": 1, "allow": [allowance(70)]})) == 1


@pytest.mark.parametrize(
    ("found", "allowed"),
    [
        pytest.param([70], {"most": 1, "allow": [allowance(80)]}, id="too generous"),
        pytest.param([], {"most": 1, "allow": [allowance(70)]}, id="no longer needed"),
        pytest.param([70], {"most": 1, "allow": [allowance(70, "")]}, id="no reason"),
        pytest.param([70], {"most": 2, "allow": [allowance(70)]}, id="longer than it says"),
    ],
)
def test_the_allowlist_only_shrinks(found: list[int], allowed: dict[str, object]) -> None:
    assert len(gates.apply_allowances([breach(size) for size in found], allowed)) == 1


def test_the_script_exits_with_1_on_a_breach(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "utils.py").write_text("x = 1\n")
    command = [sys.executable, str(ROOT / "tools" / "gates.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "grab-bag" in done.stdout
