"""The command as a process: verbs, versions, errors, and a fast start."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

import kvern
from kvern.cli.main import VERBS


def kvern_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvern.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_version() -> None:
    done = kvern_command("--version")
    assert (done.returncode, done.stdout) == (0, f"kvern {kvern.__version__}\n")


def test_no_arguments_show_the_verbs() -> None:
    done = kvern_command()
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS)


def test_an_unknown_verb_is_a_usage_error() -> None:
    done = kvern_command("sreve")
    assert done.returncode == 2
    assert "sreve" in done.stderr and "serve" in done.stderr


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(verb: str) -> None:
    done = kvern_command(verb, "--help")
    assert done.returncode == 0
    assert f"kvern {verb}" in done.stdout


def test_version_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom kvern.cli.main import main\nmain(['--version'])\n"
        "heavy = ('numpy', 'msgspec', 'starlette', 'uvicorn', 'rich', 'asyncio', 'zmq')\n"
        "sys.exit(' '.join(name for name in heavy if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_version_is_quick() -> None:
    """Under 150 ms more than Python's own start on an idle machine; here the best of five, doubled for a busy one."""

    def best(*arguments: str) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
            times.append(time.perf_counter() - start)
        assert statistics.median(times) > 0
        return min(times)

    assert best("-m", "kvern.cli.main", "--version") - best("-c", "pass") < 0.3
