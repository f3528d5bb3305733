"""Ways to bring an engine up: as a process of its own, or as a thread of this one. Both speak ``engine.wire``."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from kvern.engine.process import Build, run_engine

ENGINE_MODULE = "kvern.assembly.engine"  # run with: socket, in-flight file (descriptors), options as JSON
SOCKET_BYTES = 1 << 20


class RunningEngine(Protocol):
    """An engine that was launched. ``connection`` is the client's end of its socket."""

    connection: socket.socket

    @property
    def pid(self) -> int | None:
        """Of its process; None when it is a thread of this one."""

    def end(self) -> str:
        """Make sure it is gone, its connection being closed, by force if need be; how it ended, in words."""


Launch = Callable[[int], RunningEngine]  # takes the descriptor of the in-flight file


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    return ours, theirs


class ProcessEngine:
    """An engine in a process of its own. It ends by itself when this process does, however that happens."""

    def __init__(self, options_json: str, in_flight_file: int, module: str = ENGINE_MODULE) -> None:
        self.connection, theirs = _socket_pair()
        with theirs:
            descriptors = (theirs.fileno(), in_flight_file)
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, descriptors), options_json],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def end(self) -> str:
        try:
            code = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    @classmethod
    def launcher(cls, options_json: str, module: str = ENGINE_MODULE) -> Launch:
        return lambda in_flight_file: cls(options_json, in_flight_file, module)


class ThreadEngine:
    """An engine in a thread of this process."""

    def __init__(self, build: Build, in_flight_file: int) -> None:
        self.connection, theirs = _socket_pair()
        self._thread = threading.Thread(
            target=run_engine, args=(build, theirs, in_flight_file), name="kvern-engine", daemon=True
        )
        self._thread.start()

    @property
    def pid(self) -> int | None:
        return None

    def end(self) -> str:
        self._thread.join()
        return "its thread ended"

    @classmethod
    def launcher(cls, build: Build) -> Launch:
        return lambda in_flight_file: cls(build, in_flight_file)
