"""A tiny model, and kvern as a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_models

LIMIT_S = 90  # for a start on a busy machine
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


class Served(NamedTuple):
    process: subprocess.Popen[str]
    url: str
    log: Path  # what it printed to standard error


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama", "Q8_0")


@pytest.fixture(scope="session")
def chat_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "chat.jinja"
    path.write_text(TEMPLATE)
    return path


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """This process's own, with all that kvern writes going to a temporary folder."""
    home = tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KVERN_")}
    return kept | {"HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "XDG_CACHE_HOME": str(home / "cache")}


@pytest.fixture(scope="session")
def kvern(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command to its end."""

    def run(*arguments: object, text: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kvern.cli.main", *map(str, arguments)]
        return subprocess.run(command, input=text, env=environment, capture_output=True, text=True, timeout=LIMIT_S)

    return run


def _address(process: subprocess.Popen[str], log: Path) -> str:
    """The URL from the line that says the server answers."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("serving on "):
        process.kill()
        process.wait()
        raise AssertionError(f"kvern serve said {line!r} and: {log.read_text()}")
    return line.split()[-1].removesuffix("/v1")


@pytest.fixture(scope="session")
def serving(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., object]:
    """``with serving(model, "--flag", ...) as served``: a server on a free port, ended by SIGTERM if it runs."""

    @contextmanager
    def start(*arguments: object) -> Iterator[Served]:
        log = tmp_path_factory.mktemp("serve") / "stderr.txt"
        command = [sys.executable, "-m", "kvern.cli.main", "serve", "--port", "0", *map(str, arguments)]
        with (
            log.open("w") as errors,
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        ):
            try:
                yield Served(process, _address(process, log), log)
            finally:
                if process.poll() is None:
                    process.terminate()
                    try:
                        process.wait(LIMIT_S)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        raise

    return start
