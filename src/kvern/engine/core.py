"""The control core: events in, commands out. No loop, thread, clock, chance or I/O.

``handle`` settles what happened, lets the policies react, and makes the next plan of each lane that has room.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvern.core.errors import InvariantBroken
from kvern.core.events import (
    Aborted,
    Arrived,
    Command,
    Delta,
    Emit,
    Event,
    Execute,
    Interrupt,
    LaneFailed,
    Measured,
    Refuse,
    Reprioritise,
    Stepped,
    WakeAt,
    WeightsChanged,
    Woken,
)
from kvern.core.limits import EngineConfig
from kvern.core.plan import StepReport
from kvern.core.ports import EngineStats
from kvern.core.request import Request
from kvern.core.views import Policies
from kvern.engine.views import LedgerView
from kvern.sched.door import refusal
from kvern.sched.lanes import Flight
from kvern.sched.ledger import Ledger
from kvern.sched.scheduler import Scheduler
from kvern.sched.settle import Settler

WAKE_TAG = "plan"


class EngineCore:
    """One engine's decisions. Driven by the real loop, by a replay, or by a simulator.

    ``cache_key`` (0 to 64 secret bytes) keys the hashes of the prefix index; it never shows in a command.
    """

    def __init__(self, config: EngineConfig, policies: Policies, *, cache_key: bytes = b"") -> None:
        self.config = config
        self.policies = policies
        self._ledger = Ledger(config, cache_key)
        self._view = LedgerView(self._ledger)
        self._settler = Settler(self._ledger)
        self._scheduler = Scheduler(self._ledger, policies, self._view)

    def handle(self, event: Event, now: float) -> list[Command]:
        """What is to be done about ``event`` at ``now`` (seconds, never decreasing).

        Raises InvariantBroken when the event contradicts what is in flight: a bug, after which the core must go.
        """
        self._view.now = now
        commands: list[Command] = []
        if isinstance(event, Stepped):
            self._stepped(event.report, commands)
        else:
            self._scheduler.disturb()
            self._note(event, now, commands)
        reactions = self.policies.preemption.on(event, self._view)
        if reactions:
            self._interrupt(reactions, commands)
        depth = self.config.depth
        for lane in self._ledger.lanes:
            while lane.open_for(depth):
                flight = self._scheduler.next_flight(lane, now)
                if flight is None:
                    break
                commands.append(Execute(flight.plan))
        if self._scheduler.wake is not None:
            commands.append(WakeAt(self._scheduler.wake, WAKE_TAG))
            self._scheduler.wake = None
        return commands

    def stats(self) -> EngineStats:
        """Counts now; what only the loop around the core knows is left at zero."""
        ledger, count = self._ledger, self._ledger.count
        return EngineStats(
            running=len(ledger.running),
            waiting=len(ledger.queue),
            pages_used=ledger.pool.used,
            pages_cached=ledger.pool.cached,
            pages_total=ledger.pool.pages,
            preemptions=count.preemptions,
            prefix_queries_tokens=count.prefix_queries_tokens,
            prefix_hits_tokens=count.prefix_hits_tokens,
            prompt_tokens=count.prompt_tokens,
            generation_tokens=count.generation_tokens,
            steps=count.steps,
        )

    def audit(self) -> None:
        """Check that every page and sequence is accounted for. Raises InvariantBroken."""
        self._ledger.audit()

    # -- events -------------------------------------------------------------------------------------------------

    def _note(self, event: Event, now: float, commands: list[Command]) -> None:
        ledger = self._ledger
        match event:
            case Arrived(request):
                self._arrived(request, commands)
            case Aborted(key, _):
                if key in ledger.live:
                    commands.append(Emit((self._settler.close(ledger.live[key], "abort"),)))
            case LaneFailed():
                self._lane_failed(event, commands)
            case Reprioritise(key, rank):
                if key in ledger.live:
                    ledger.reprioritise(ledger.live[key], rank, now)
            case Measured(name, value):
                self._view.measured[name] = value
            case Woken():
                ledger.pool.unpin_expired(now)
            case WeightsChanged(revision):
                ledger.renew_weights(revision)
            case _:
                raise InvariantBroken(f"{type(event).__name__} is not an event of the core")

    def _arrived(self, request: Request, commands: list[Command]) -> None:
        ledger, config = self._ledger, self.config
        refuse = refusal(request, config)
        if refuse is None and (request.id in ledger.live or request.id in ledger.draining):
            refuse = Refuse(request.id, "id", f"request {request.id} is already here")
        if refuse is None and len(ledger.queue) >= config.max_waiting:
            text = f"{len(ledger.queue)} requests are waiting; at most {config.max_waiting} may"
            refuse = Refuse(request.id, "queue", text, float(config.max_waiting))
        if refuse is not None:
            commands.append(refuse)
        elif len(request.accepted) >= request.sampling.max_tokens:
            commands.append(Emit((Delta(request.id, finish="length"),)))
        else:
            sequence = ledger.arrive(request)
            ledger.set_rank(sequence, self.policies.order.rank(sequence, self._view))

    def _stepped(self, report: StepReport, commands: list[Command]) -> None:
        flight = self._land(report.lane, report.step)
        if flight.doomed:
            self._settler.void(flight.sequences)
            self._scheduler.disturb()
            return
        deltas, calm = self._settler.report(flight, report)
        if not calm:
            self._scheduler.disturb()
        self._ledger.lanes[report.lane].quarantine.passed(tuple(piece.sequence for piece in flight.plan.slices))
        if deltas:
            commands.append(Emit(tuple(deltas)))

    def _lane_failed(self, event: LaneFailed, commands: list[Command]) -> None:
        flight = self._land(event.lane, event.step)
        if flight.doomed:
            self._settler.void(flight.sequences)
            return
        lane = self._ledger.lanes[event.lane]
        self._settler.failed(lane, flight)
        blamed = lane.quarantine.failed(tuple(piece.sequence for piece in flight.plan.slices))
        if blamed in self._ledger.live and blamed is not None:
            sequence = self._ledger.live[blamed]
            self._ledger.distrust(sequence)
            commands.append(Emit((self._settler.close(sequence, "error", event.message),)))

    def _land(self, number: int, step: int) -> Flight:
        """Take the plan that a report is about. Plans of a lane are reported in order."""
        lanes = self._ledger.lanes
        flights = lanes[number].flights if 0 <= number < len(lanes) else None
        if not flights or flights[0].plan.step != step:
            raise InvariantBroken(f"step {step} of lane {number} is not the next one to be reported")
        flight = flights.popleft()
        for sequence in flight.plan.ends:
            self._ledger.device.departing.pop(sequence, None)
        return flight

    def _interrupt(self, reactions: Sequence[Interrupt], commands: list[Command]) -> None:
        """Pass on interrupts of plans that are in flight, may stop early, and were not interrupted yet."""
        for wish in reactions:
            lanes = self._ledger.lanes
            for flight in lanes[wish.lane].flights if 0 <= wish.lane < len(lanes) else ():
                if flight.plan.step == wish.step and flight.plan.interruptible and not flight.interrupted:
                    flight.interrupted = True
                    commands.append(wish)
