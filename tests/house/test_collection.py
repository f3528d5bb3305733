"""Every test file is collected: a test that no one runs is worse than none."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_file_is_collected() -> None:
    flags = ["--collect-only", "-rs", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *flags, str(ROOT / "tests")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:]
    collected = {line.split("::")[0] for line in done.stdout.splitlines() if "::" in line}
    # A file that skips itself as a whole (a peer is not installed) says so with its place and reason.
    collected |= set(re.findall(r"^SKIPPED \[\d+\] (\S+?\.py):\d+", done.stdout, re.MULTILINE))
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    written = {name for name in files if Path(name).name.startswith("test_") or Path(name).name.endswith("_test.py")}
    assert written - collected == set()
    assert len(written) > 5


def test_files_with_tests_are_named_so_that_pytest_finds_them() -> None:
    strays = []
    for path in (ROOT / "tests").rglob("*.py"):
        holds_tests = any(line.startswith(("def test_", "async def test_")) for line in path.read_text().splitlines())
        if holds_tests and not path.name.startswith("test_"):
            strays.append(str(path.relative_to(ROOT)))
    assert strays == []
