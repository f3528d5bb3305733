"""The life of one engine, from its end of the socket: build, say so, serve, close. In a process or in a thread."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from traceback import format_exception

from kvern.core.errors import KvernError
from kvern.engine.channel import Channel, Wake
from kvern.engine.driver import BuiltEngine, Driver
from kvern.engine.in_flight import InFlight
from kvern.engine.wire import Failed, Progress, Ready

ORPHAN_GRACE_S = 5.0
EXIT_FAILED = 70


class MonotonicClock:
    """Seconds since the machine started."""

    def now(self) -> float:
        return time.monotonic()


ReportProgress = Callable[[int, int], None]  # bytes of weights ready, of all
Build = Callable[[Wake, ReportProgress], BuiltEngine]


def run_engine(build: Build, connection: socket.socket, in_flight_file: int, *, signals: bool = False) -> bool:
    """Build an engine and serve until told to stop or the client is gone. True when nothing went wrong.

    ``signals`` (main thread of a process only) makes SIGTERM a graceful stop.
    """
    channel, wake = Channel(connection), Wake()
    in_flight = InFlight(in_flight_file)
    try:
        engine = build(wake, _Loading(channel).report)
        try:
            driver = Driver(engine, channel, wake=wake, clock=MonotonicClock(), in_flight=in_flight)
            if signals:
                signal.signal(signal.SIGTERM, lambda *_: driver.stop())
            channel.send(Ready(engine.info, engine.memory_plan))
            driver.run()
        finally:
            engine.executor.close()
    except Exception as error:  # the client must hear of any failure, whatever it is
        with contextlib.suppress(KvernError):
            channel.send(Failed(type(error).__name__, str(error)))
            channel.drain(1.0)
        if signals and not isinstance(error, KvernError):
            _log_line(error)
        return False
    finally:
        channel.close()
        in_flight.close()
        wake.close()
    return True


def _log_line(error: Exception) -> None:
    """One line of JSON on standard error: an engine process writes nothing else."""
    line = {"level": "error", "error": type(error).__name__, "message": str(error), "trace": format_exception(error)}
    print(json.dumps(line), file=sys.stderr, flush=True)


class _Loading:
    """Passes on how far loading is, from the thread that loads. A back end that reads a weight later, from a thread
    of its own, is not listened to: the channel belongs to this one."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self._thread = channel, threading.get_ident()

    def report(self, done: int, total: int) -> None:
        if threading.get_ident() == self._thread:
            self._channel.send(Progress(done, total))


def watch_parent(connection: socket.socket) -> None:
    """End this process soon after the client is gone, even while it loads or a step hangs."""

    def watch() -> None:
        poll = select.poll()
        poll.register(connection, 0)  # a hang-up is always reported
        poll.poll()
        time.sleep(ORPHAN_GRACE_S)
        os._exit(EXIT_FAILED)

    threading.Thread(target=watch, name="kvern-parent-watch", daemon=True).start()


def main(build: Build, socket_descriptor: int, in_flight_file: int) -> None:
    """The whole of an engine process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is the client's to handle
    connection = socket.socket(fileno=socket_descriptor)
    watch_parent(connection.dup())
    sys.exit(0 if run_engine(build, connection, in_flight_file, signals=True) else EXIT_FAILED)
