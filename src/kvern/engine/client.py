"""The client of one engine: streams of deltas that go on with the same tokens when the engine is restarted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from kvern.core import errors
from kvern.core.errors import EngineDead, InvalidRequest, KvernError, Overloaded
from kvern.core.events import Delta, Refuse
from kvern.core.ports import EngineInfo, EngineStats
from kvern.core.request import Request
from kvern.engine import wire
from kvern.engine.in_flight import InFlight, new_file
from kvern.engine.launch import Launch, RunningEngine
from kvern.engine.live_requests import LiveRequest

logger = logging.getLogger("kvern.engine")


@dataclass(frozen=True)
class ClientLimits:
    """When an engine counts as dead, and how often it is brought back."""

    heartbeat_s: float = 10.0  # silence after which ``alive`` is false
    step_s: float = 120.0  # age of the last step after which ``alive`` is false
    restarts: int = 6  # within ``window_s``; one more and the engine stays dead
    window_s: float = 300.0
    backoff_s: float = 0.1  # before the first restart of a window; doubles up to ``backoff_limit_s``
    backoff_limit_s: float = 5.0
    stats_wait_s: float = 2.0


class SocketEngineClient:
    """An ``EngineClient`` of an engine that ``launch`` brings up (see ``engine.launch``).

    All methods but ``alive`` belong to the event loop that ran ``start``. ``progress`` is told bytes of weights ready
    and bytes of all weights.
    """

    def __init__(
        self,
        launch: Launch,
        *,
        limits: ClientLimits | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._launch, self._limits = launch, limits or ClientLimits()
        self._progress = progress
        self._live: dict[int, LiveRequest] = {}
        self._engine: RunningEngine | None = None
        self._in_flight_file = -1
        self._in_flight: InFlight | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._serving = False  # the engine that ``_writer`` leads to is ready
        self._reader: asyncio.StreamReader | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._stats_waiters: list[asyncio.Future[EngineStats]] = []
        self._heard = 0.0
        self._dead: EngineDead | None = None
        self._closing = False
        self._restarts: deque[float] = deque()
        self.memory_plan = ""
        self.restarts = 0  # since start

    # -- the EngineClient interface --------------------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo:
        """Raises EngineDead before ``start``."""
        if self._info is None:
            raise EngineDead("the engine has not been started")
        return self._info

    @property
    def pid(self) -> int | None:
        """Process id of the engine that runs now; None for an embedded one."""
        return self._engine.pid if self._engine is not None else None

    async def start(self) -> None:
        """Bring the engine up and wait until it is ready. Raises what it failed with."""
        self._in_flight_file = new_file()
        self._in_flight = InFlight(self._in_flight_file)
        try:
            await self._bring_up()
        except BaseException:
            await self._take_down()
            self._release()
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name="kvern-engine-supervisor")

    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        """Submit and yield deltas; closing the iterator early aborts the request.

        Raises InvalidRequest (refused), Overloaded, EngineDead.
        """
        if self._dead is not None:
            raise self._dead
        if self._supervisor is None or self._closing:
            raise EngineDead("the engine is not running")
        live = LiveRequest(request)
        self._live[request.id] = live
        try:
            self._submit(live)
            while True:
                delta = await live.next()
                yield delta
                if delta.finish is not None:
                    return
        finally:
            del self._live[request.id]
            if live.submitted and not live.over:
                self._send(wire.Abort(request.id, "the client left"))
            self._release_suspects()

    async def stats(self) -> EngineStats:
        """The engine's counts, fresh if it answers soon, else the last ones heard."""
        if not self._serving:
            return self._stats
        waiter: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._stats_waiters.append(waiter)
        self._send(wire.StatsWanted())
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(waiter, self._limits.stats_wait_s)
        return self._stats

    def alive(self) -> bool:
        """The engine loop has finished a step or a heartbeat lately."""
        if not self._serving:
            return False
        silent = time.monotonic() - self._heard
        return silent < self._limits.heartbeat_s and self._stats.last_step_age_s + silent < self._limits.step_s

    async def close(self) -> None:
        """Stop the engine; open streams raise EngineDead."""
        self._closing = True
        self._send(wire.Shutdown())
        self._fail_all(EngineDead("the engine was closed"))
        if self._supervisor is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._supervisor), 5.0)
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        await self._take_down()
        self._release()

    # -- bringing an engine up and down --------------------------------------------------------------------------

    async def _bring_up(self) -> None:
        self._engine = await asyncio.to_thread(self._launch, self._in_flight_file)
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._engine.connection, limit=1 << 20)
        while True:
            message = await self._read()
            match message:
                case wire.Progress(done, total):
                    if self._progress is not None:
                        self._progress(done, total)
                case wire.Ready(info, plan):
                    self._info, self.memory_plan, self._serving = info, plan, True
                    self._heard = time.monotonic()
                    return
                case wire.Failed(name, text):
                    raise _known_error(name, text)
                case None:
                    raise EngineDead(f"the engine ended while it was loading ({await self._take_down()})")
                case _:
                    self._hear(message)

    async def _take_down(self) -> str:
        """Close the connection and wait for the engine's end, which it describes."""
        self._serving = False
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._writer = self._reader = None
        engine, self._engine = self._engine, None
        return await asyncio.to_thread(engine.end) if engine is not None else ""

    def _release(self) -> None:
        if self._in_flight is not None:
            self._in_flight.close()
            os.close(self._in_flight_file)
            self._in_flight = None

    async def _supervise(self) -> None:
        """Read what the engine says; when it dies, bring it back, until it has died too often."""
        while not self._closing:
            await self._listen()
            how = await self._take_down()
            if self._closing:
                return
            logger.error("the engine died: %s", how)
            self._count_crash()
            try:
                await self._restart()
            except KvernError as error:
                self._dead = EngineDead(str(error))
                logger.exception("the engine cannot be brought back")
                self._fail_all(self._dead)
                return
            self._resubmit()

    async def _restart(self) -> None:
        while True:
            now = time.monotonic()
            while self._restarts and now - self._restarts[0] > self._limits.window_s:
                self._restarts.popleft()
            if len(self._restarts) >= self._limits.restarts:
                raise EngineDead(f"the engine died {len(self._restarts) + 1} times in {self._limits.window_s:.0f} s")
            await asyncio.sleep(min(self._limits.backoff_limit_s, self._limits.backoff_s * 2 ** len(self._restarts)))
            self._restarts.append(now)
            self.restarts += 1
            try:
                return await self._bring_up()
            except (KvernError, OSError) as error:
                logger.warning("the engine did not come back: %s", error)
                await self._take_down()

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _read(self) -> wire.Message | None:
        """The next message; None at the end of the connection."""
        assert self._reader is not None
        try:
            kind, length = wire.read_header(await self._reader.readexactly(wire.HEADER.size))
            return wire.decode(kind, await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _listen(self) -> None:
        try:
            while (message := await self._read()) is not None:
                self._heard = time.monotonic()
                self._hear(message)
        except wire.WireError:
            logger.exception("the engine broke the protocol")

    def _hear(self, message: wire.Message) -> None:
        match message:
            case wire.Deltas(deltas):
                for delta in deltas:
                    if (live := self._live.get(delta.request)) is not None:
                        live.add(delta)
                self._release_suspects()
            case wire.Stats(stats):
                self._stats = stats
                for waiter in self._stats_waiters:
                    if not waiter.done():
                        waiter.set_result(stats)
                self._stats_waiters.clear()
            case wire.Refused(refusal):
                if (live := self._live.get(refusal.request)) is not None:
                    live.fail(_refusal_error(refusal))
            case wire.Failed(name, text):
                logger.error("the engine failed: %s: %s", name, text)
            case wire.Log(level, text):
                logger.log(logging.getLevelNamesMapping().get(level, logging.INFO), "%s", text)

    # -- writing ---------------------------------------------------------------------------------------------------

    def _send(self, message: wire.Message) -> None:
        if self._serving and self._writer is not None and not self._writer.is_closing():
            self._writer.write(wire.encode(message))

    def _submit(self, live: LiveRequest) -> None:
        if not self._serving:
            return  # the engine is being restarted; ``_resubmit`` follows
        try:
            self._send(wire.Submit(live.to_submit()))
            live.submitted = True
        except wire.WireError as error:
            live.fail(InvalidRequest(str(error), field="prompt", code="too_large"))

    def _fail_all(self, error: KvernError) -> None:
        for live in self._live.values():
            live.fail(error)

    # -- after a crash ---------------------------------------------------------------------------------------------

    def _count_crash(self) -> None:
        assert self._in_flight is not None
        in_plan = self._in_flight.read()
        self._in_flight.clear()
        for live in self._live.values():
            live.crashed(in_plan=live.request.id in in_plan)

    def _resubmit(self) -> None:
        for live in self._live.values():
            if not live.over and not live.submitted and not live.suspect:
                self._submit(live)
        self._release_suspects()

    def _release_suspects(self) -> None:
        """Of requests in the plan each time the engine died, one at a time runs: so the guilty one shows."""
        suspects = [live for live in self._live.values() if live.suspect and not live.cleared()]
        if suspects and not any(live.submitted for live in suspects):
            self._submit(suspects[0])


def _known_error(name: str, text: str) -> KvernError:
    """The error class of the engine's process, here; EngineDead for one that has no name here."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, KvernError) and kind not in (InvalidRequest, Overloaded):
        return kind(text)
    return EngineDead(f"the engine could not start: {name}: {text}")


def _refusal_error(refusal: Refuse) -> KvernError:
    if refusal.field == "queue":
        return Overloaded(refusal.message, retry_after_s=1.0)
    return InvalidRequest(refusal.message, field=refusal.field, code="out_of_range")
