"""A client's connection to the engine that runs now: launched, spoken to, taken down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from kvern.core import errors
from kvern.core.errors import EngineDead, InvalidRequest, KvernError, Overloaded
from kvern.engine import wire
from kvern.engine.launch import Launch, RunningEngine

Progress = Callable[[int, int], None]  # bytes of weights ready, of all


class EngineLink:
    """At most one engine at a time. ``serving`` is true from its readiness until the connection is taken down."""

    def __init__(self, launch: Launch, progress: Progress | None) -> None:
        self._launch, self._progress = launch, progress
        self._engine: RunningEngine | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.serving = False

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None for an embedded one, and for none at all."""
        return self._engine.pid if self._engine is not None else None

    async def bring_up(self, in_flight_file: int) -> wire.Ready:
        """Launch an engine and wait until it serves. Raises what it failed with; take the link down then."""
        self._engine = await asyncio.to_thread(self._launch, in_flight_file)
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._engine.connection, limit=1 << 20)
        while True:
            match await self.read():
                case wire.Progress(done, total):
                    if self._progress is not None:
                        self._progress(done, total)
                case wire.Ready() as ready:
                    self.serving = True
                    return ready
                case wire.Failed(name, text):
                    raise _known_error(name, text)
                case None:
                    raise EngineDead(f"the engine ended while it was loading ({await self.take_down()})")

    async def take_down(self) -> str:
        """Close the connection and wait for the engine's end, which it describes."""
        self.serving = False
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._writer = self._reader = None
        engine, self._engine = self._engine, None
        return await asyncio.to_thread(engine.end) if engine is not None else ""

    async def read(self) -> wire.Message | None:
        """The next message; None at the end of the connection. Raises WireError."""
        assert self._reader is not None
        try:
            kind, length = wire.read_header(await self._reader.readexactly(wire.HEADER.size))
            return wire.decode(kind, await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def send(self, message: wire.Message) -> None:
        """Queue a message; nothing happens when no engine serves. Raises WireError for one that is too large."""
        if self.serving and self._writer is not None and not self._writer.is_closing():
            self._writer.write(wire.encode(message))


def _known_error(name: str, text: str) -> KvernError:
    """The error class of the engine's process, here; EngineDead for one that has no name here."""
    kind = vars(errors).get(name)
    if isinstance(kind, type) and issubclass(kind, KvernError) and kind not in (InvalidRequest, Overloaded):
        return kind(text)
    return EngineDead(f"the engine could not start: {name}: {text}")
