"""The client of one engine: streams of deltas that go on with the same tokens when the engine is restarted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from kvern.core.errors import ConfigError, EngineDead, InvalidRequest, KvernError, Overloaded
from kvern.core.events import Delta, Refuse
from kvern.core.ports import EngineInfo, EngineStats
from kvern.core.request import Request
from kvern.engine import wire
from kvern.engine.in_flight import InFlight, new_file
from kvern.engine.launch import Launch
from kvern.engine.link import EngineLink, Progress
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
    close_s: float = 10.0  # a step in flight may take so long when the engine is told to stop


class SocketEngineClient:
    """An ``EngineClient`` of an engine that ``launch`` brings up (see ``engine.launch``).

    All methods but ``alive`` belong to the event loop that ran ``start``. ``progress`` is told bytes of weights ready
    and bytes of all weights.
    """

    def __init__(
        self, launch: Launch, *, limits: ClientLimits | None = None, progress: Progress | None = None
    ) -> None:
        self._limits = limits or ClientLimits()
        self._link = EngineLink(launch, progress)
        self._live: dict[int, LiveRequest] = {}
        self._in_flight_file = -1
        self._in_flight: InFlight | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._ready: wire.Ready | None = None
        self._stats = EngineStats()
        self._stats_waiters: list[asyncio.Future[EngineStats]] = []
        self._budget_waiters: deque[asyncio.Future[str]] = deque()  # in order of asking
        self._heard = 0.0
        self._over: EngineDead | None = None
        self._recent_restarts: deque[float] = deque()
        self.restarts = 0  # since start

    # -- the EngineClient interface --------------------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo:
        """Raises EngineDead before ``start``."""
        if self._ready is None:
            raise EngineDead("the engine has not been started")
        return self._ready.info

    @property
    def memory_plan(self) -> str:
        """As printed; empty before ``start``."""
        return "" if self._ready is None else self._ready.plan

    @property
    def pid(self) -> int | None:
        """Process id of the engine that runs now; None for an embedded one."""
        return self._link.pid

    async def start(self) -> None:
        """Bring the engine up and wait until it is ready. Raises what it failed with."""
        self._in_flight_file = new_file()
        self._in_flight = InFlight(self._in_flight_file)
        try:
            self._ready = await self._link.bring_up(self._in_flight_file)
        except BaseException:
            await self._link.take_down()
            self._release()
            raise
        self._heard = time.monotonic()
        self._supervisor = asyncio.create_task(self._supervise(), name="kvern-engine-supervisor")

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Submit and yield deltas; closing the iterator early aborts the request.

        Raises InvalidRequest (refused), Overloaded, EngineDead.
        """
        if self._over is not None:
            raise self._over
        if self._supervisor is None:
            raise EngineDead("the engine has not been started")
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
                self._link.send(wire.Abort(request.id, "the client left"))
            self._release_suspects()

    async def stats(self) -> EngineStats:
        """The engine's counts, fresh if it answers soon, else the last ones heard."""
        if not self._link.serving:
            return self._stats
        waiter: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        self._stats_waiters.append(waiter)
        self._link.send(wire.StatsWanted())
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(waiter, self._limits.stats_wait_s)
        return self._stats

    async def set_weight_budget(self, budget: int | None) -> None:
        """Bytes that all weights may take from the next step on; None: all. Raises ConfigError when that is not
        possible (nothing has changed then), EngineDead. A restarted engine begins with its first budget again."""
        if not self._link.serving:
            raise EngineDead("the engine is not serving")
        waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._budget_waiters.append(waiter)
        self._link.send(wire.SetWeightBudget(budget))
        refusal = await waiter
        if refusal:
            raise ConfigError(refusal)

    def alive(self) -> bool:
        """The engine loop has finished a step or a heartbeat lately."""
        if not self._link.serving:
            return False
        silent = time.monotonic() - self._heard
        return silent < self._limits.heartbeat_s and self._stats.last_step_age_s + silent < self._limits.step_s

    async def close(self) -> None:
        """Stop the engine; open streams raise EngineDead."""
        self._over = self._over or EngineDead("the engine was closed")
        self._link.send(wire.Shutdown())
        for live in self._live.values():
            live.fail(self._over)
        if self._supervisor is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._supervisor), self._limits.close_s)
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        await self._link.take_down()
        self._release()

    def _release(self) -> None:
        if self._in_flight is not None:
            self._in_flight.close()
            os.close(self._in_flight_file)
            self._in_flight = None

    # -- the supervisor ----------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        """Read what the engine says; when it dies, bring it back, until it has died too often."""
        while True:
            await self._listen()
            how = await self._link.take_down()
            while self._budget_waiters:
                if not (waiting := self._budget_waiters.popleft()).done():
                    waiting.set_exception(EngineDead("the engine died before it could say"))
            if self._over is not None:
                return
            logger.error("the engine died: %s", how)
            self._count_crash()
            try:
                await self._restart()
            except KvernError as error:
                self._over = EngineDead(str(error))
                logger.error("the engine cannot be brought back: %s", error)
                for live in self._live.values():
                    live.fail(self._over)
                return
            self._resubmit()

    async def _restart(self) -> None:
        limits, recent = self._limits, self._recent_restarts
        while True:
            now = time.monotonic()
            while recent and now - recent[0] > limits.window_s:
                recent.popleft()
            if len(recent) >= limits.restarts:
                raise EngineDead(f"the engine died {len(recent) + 1} times in {limits.window_s:.0f} s")
            await asyncio.sleep(min(limits.backoff_limit_s, limits.backoff_s * 2 ** len(recent)))
            if self._over is not None:
                raise self._over
            recent.append(now)
            self.restarts += 1
            try:
                self._ready = await self._link.bring_up(self._in_flight_file)
            except (KvernError, OSError) as error:
                logger.warning("the engine did not come back: %s", error)
                await self._link.take_down()
            else:
                self._heard = time.monotonic()
                return

    async def _listen(self) -> None:
        try:
            while (message := await self._link.read()) is not None:
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
                if any(delta.finish is not None for delta in deltas):
                    self._resubmit()
                self._release_suspects()
            case wire.Stats(stats):
                self._stats = stats
                for waiter in self._stats_waiters:
                    if not waiter.done():
                        waiter.set_result(stats)
                self._stats_waiters.clear()
            case wire.WeightBudgetSet(refused):
                if not (waiting := self._budget_waiters.popleft()).done():
                    waiting.set_result(refused)
            case wire.Refused(refusal):
                self._refused(refusal)
            case wire.Failed(name, text):
                logger.error("the engine failed: %s: %s", name, text)
            case wire.Log(level, text):
                logger.log(logging.getLevelNamesMapping().get(level, logging.INFO), "%s", text)

    # -- requests ----------------------------------------------------------------------------------------------------

    def _submit(self, live: LiveRequest) -> None:
        """Hand a request to the engine; while one is being restarted it waits for ``_resubmit``."""
        if not self._link.serving:
            return
        try:
            self._link.send(wire.Submit(live.to_submit()))
            live.submitted = True
        except wire.WireError as error:
            live.fail(InvalidRequest(str(error), field="prompt", code="too_large"))

    def _refused(self, refusal: Refuse) -> None:
        live = self._live.get(refusal.request)
        if live is None:
            return
        if refusal.field == "queue" and live.resumed:
            live.submitted = False  # it had its place before the engine died: again when another one ends
        else:
            live.fail(_refusal_error(refusal))

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
        suspects = [live for live in self._live.values() if live.suspect and not live.over and not live.cleared()]
        if suspects and not any(live.submitted for live in suspects):
            self._submit(suspects[0])


def _refusal_error(refusal: Refuse) -> KvernError:
    if refusal.field == "queue":
        return Overloaded(refusal.message, retry_after_s=1.0)
    return InvalidRequest(refusal.message, field=refusal.field, code="out_of_range")
