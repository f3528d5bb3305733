"""The real loop around the control core: messages, timers and completions in; commands out.

One thread, no arrays. It sleeps in ``poll`` until the client writes, a lane finishes, or a timer is due.
"""

from __future__ import annotations

import heapq
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from kvern.core.events import (
    Aborted,
    Arrived,
    Command,
    Emit,
    Event,
    Execute,
    Interrupt,
    LaneFailed,
    Refuse,
    Stepped,
    WakeAt,
    WeightsChanged,
    Woken,
)
from kvern.core.ports import Clock, EngineInfo, EngineStats, Executor
from kvern.engine.channel import Channel, Wake
from kvern.engine.in_flight import InFlight
from kvern.engine.weight_budget import WeightBudget
from kvern.engine.wire import (
    Abort,
    Deltas,
    Message,
    Refused,
    SetWeightBudget,
    Shutdown,
    Stats,
    StatsWanted,
    Submit,
    WeightBudgetSet,
    WireError,
)

HEARTBEAT_S = 0.5
DRAIN_S = 2.0


class Core(Protocol):
    """What the loop needs of the control core."""

    def handle(self, event: Event, now: float) -> Sequence[Command]: ...

    def stats(self) -> EngineStats: ...


class Recorder(Protocol):
    """Where the loop notes what happened and what was decided."""

    def note(self, event: Event, now: float, commands: Sequence[Command]) -> None: ...

    def flush(self) -> None: ...


@dataclass(frozen=True)
class BuiltEngine:
    """The parts of an engine, ready to be driven."""

    core: Core
    executor: Executor
    info: EngineInfo
    memory_plan: str  # as printed
    recorder: Recorder | None
    resident_bytes: Callable[[], int]
    # Waits for the step under way. Raises ConfigError for a budget that is too small.
    set_weight_budget: Callable[[int | None], None] | None = None


class Driver:
    """Owns the loop of one engine. ``run`` returns when asked to shut down or when the client is gone."""

    def __init__(
        self,
        engine: BuiltEngine,
        channel: Channel,
        *,
        wake: Wake,
        clock: Clock,
        in_flight: InFlight | None = None,
    ) -> None:
        self._core, self._executor, self._recorder = engine.core, engine.executor, engine.recorder
        self._resident_bytes = engine.resident_bytes
        self._weights = WeightBudget(engine.set_weight_budget)
        self._channel, self._wake, self._clock, self._in_flight = channel, wake, clock, in_flight
        self._timers: list[tuple[float, str]] = []
        self._running = 0  # plans submitted and not completed
        self._stopping = False
        self._last_progress = self._last_heartbeat = clock.now()
        self.core_seconds = 0.0  # spent in the control core, since start

    def stop(self) -> None:
        """End the loop after the step that runs; safe to call from a signal handler or another thread."""
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        """Serve until stopped. Raises what breaks the core: an engine with a broken ledger must not go on."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while self._channel.open and not (self._stopping and not self._running):
            poll.register(self._channel, self._channel.events)
            poll.poll(self._timeout_ms())
            self.turn()
        self._channel.drain(DRAIN_S)
        if self._recorder is not None:
            self._recorder.flush()

    def turn(self) -> None:
        """One round of the loop, without waiting."""
        self._wake.clear()
        self._channel.flush()
        for message in self._channel.receive():
            self._take(message)
        if not self._channel.full:
            for event in self._executor.completions():
                self._running -= 1
                self._last_progress = self._clock.now()
                self._handle(event)
        self._ring_timers()
        self._beat()

    def _timeout_ms(self) -> int:
        wait = HEARTBEAT_S
        if self._timers:
            wait = min(wait, max(0.0, self._timers[0][0] - self._clock.now()))
        return int(wait * 1000) + 1

    def _take(self, message: Message) -> None:
        match message:
            case Submit(request):
                if not self._stopping:
                    self._handle(Arrived(msgspec.structs.replace(request, arrival_s=self._clock.now())))
            case Abort(request, cause):
                self._handle(Aborted(request, cause))
            case StatsWanted():
                self._channel.send(Stats(self.stats()))
            case SetWeightBudget(budget):
                done = self._weights.set(budget)
                if isinstance(done, WeightsChanged):
                    self._handle(done)
                self._channel.send(WeightBudgetSet(done if isinstance(done, str) else ""))
            case Shutdown():
                self.stop()
            case _:
                raise WireError(f"a client does not send {type(message).__name__}")

    def _handle(self, event: Event) -> None:
        now = self._clock.now()
        commands = self._core.handle(event, now)
        if self._recorder is not None:
            self._recorder.note(event, now, commands)
        for command in commands:
            self._execute(command)
        if self._in_flight is not None and isinstance(event, Stepped | LaneFailed):
            report = event.report if isinstance(event, Stepped) else event
            self._in_flight.finished(report.lane, report.step)
        self.core_seconds += self._clock.now() - now

    def _execute(self, command: Command) -> None:
        match command:
            case Execute(plan):
                if self._in_flight is not None:
                    self._in_flight.submitted(plan)
                if not self._running:
                    self._last_progress = self._clock.now()
                self._running += 1
                self._executor.submit(plan)
            case Emit(deltas):
                self._channel.send(Deltas(deltas))
            case Interrupt(lane, step):
                self._executor.interrupt(lane, step)
            case WakeAt(at_s, tag_name):
                heapq.heappush(self._timers, (at_s, tag_name))
            case Refuse():
                self._channel.send(Refused(command))

    def _ring_timers(self) -> None:
        while self._timers and self._timers[0][0] <= self._clock.now():
            _, name = heapq.heappop(self._timers)
            self._handle(Woken(name))

    def _beat(self) -> None:
        now = self._clock.now()
        if now - self._last_heartbeat < HEARTBEAT_S:
            return
        self._last_heartbeat = now
        self._channel.send(Stats(self.stats()))
        if self._recorder is not None:
            self._recorder.flush()

    def stats(self) -> EngineStats:
        """The core's counts with what only the loop knows."""
        age = self._clock.now() - self._last_progress if self._running else 0.0
        return msgspec.structs.replace(self._core.stats(), last_step_age_s=age, resident_bytes=self._resident_bytes())
