"""Asks the policies for the next plan of a lane, and keeps the promise that work is always done."""

from __future__ import annotations

from kvern.core.errors import InvariantBroken
from kvern.core.plan import PageGrant, Plan, Slice
from kvern.core.views import Policies, View
from kvern.sched.builder import PlanBuilder
from kvern.sched.lanes import Flight, Lane
from kvern.sched.ledger import Ledger


class Scheduler:
    """The mechanism between policies and ledger."""

    def __init__(self, ledger: Ledger, policies: Policies, view: View) -> None:
        self._ledger, self._policies, self._view = ledger, policies, view
        self._last: list[Flight | None] = [None] * ledger.config.lanes  # what may be repeated, by lane
        self._idle_since: float | None = None
        self.wake: float | None = None  # when to ask again; taken and cleared by the core

    def disturb(self) -> None:
        """Something other than new tokens happened: the policies are to be asked again."""
        for number in range(len(self._last)):
            self._last[number] = None

    def next_flight(self, lane: Lane, now: float) -> Flight | None:
        """The next plan of a lane that has room for one, or None."""
        flight = self._repeat(lane) or self._compose(lane, now)
        if flight is not None:
            lane.next_step += 1
            lane.flights.append(flight)
            self._last[lane.number] = flight if flight.repeats > 0 else None
            self._ledger.count.steps += 1
            self._idle_since = None
        return flight

    # -- the hot path: the last plan, one token further -----------------------------------------------------------

    def _repeat(self, lane: Lane) -> Flight | None:
        last = self._last[lane.number]
        if last is None:
            return None
        sequences, ledger = last.sequences, self._ledger
        grants: tuple[PageGrant, ...] = ()
        short = [item for item in sequences if item.planned >= item.view.capacity]
        if short:
            pages = ledger.pool.reserve(len(short))
            if pages is None:
                return None
            grants = tuple(ledger.grant(item, [page]) for item, page in zip(short, pages, strict=True))
        units = ledger.config.units
        slices: list[Slice] = []
        add = slices.append
        for item in sequences:
            begin = item.planned
            item.planned = end = begin + 1
            item.pending += 1
            item.flights += 1
            add(Slice(item.id, begin, end, 0, units, True))
        plan = Plan(lane.next_step, lane.number, tuple(slices), (), grants)
        return Flight(plan, sequences, True, True, last.repeats - 1)

    def _repeats(self, flight: Flight, builder: PlanBuilder) -> int:
        """How many plans like this one may follow as long as nothing but new tokens happens."""
        ledger = self._ledger
        if not (self._policies.composing.steady and flight.plain and flight.closed) or builder.wake is not None:
            return 0
        steady = ledger.claim is None and not ledger.device.leaving and ledger.config.lanes == 1
        if not steady or len(flight.sequences) != len(ledger.running):
            return 0
        return min((item.limit - item.length for item in flight.sequences), default=0)

    # -- asking the policies --------------------------------------------------------------------------------------

    def _compose(self, lane: Lane, now: float) -> Flight | None:
        ledger = self._ledger
        while True:
            builder = PlanBuilder(ledger, self._policies, self._view, lane)
            if ledger.claim is not None:
                ledger.claim.fresh = False
            self._policies.composing.compose(builder)
            if ledger.claim is not None and not ledger.claim.fresh:
                ledger.claim = None
            if not builder.empty or lane.quarantine.group is None:
                break
            lane.quarantine.skip()
        if builder.empty and ledger.idle and ledger.live and not self._waits(builder, now):
            self._force(builder)
        if not builder.empty:
            flight = builder.finish()
            flight.repeats = self._repeats(flight, builder)
            return flight
        if ledger.device.leaving and ledger.idle and lane.quarantine.trusted:
            return builder.finish()  # nothing to compute, but the device is to free what left
        return None

    def _waits(self, builder: PlanBuilder, now: float) -> bool:
        """Does the policy ask for a pause, and may it have one?"""
        if builder.wake is None or builder.wake <= now:
            return False
        if self._idle_since is None:
            self._idle_since = now
        latest = self._idle_since + self._ledger.config.max_wait_s
        if latest <= now:
            return False
        self.wake = min(builder.wake, latest)
        return True

    def _force(self, builder: PlanBuilder) -> None:
        """The policies left everything idle: the highest-ranked sequence that can run does. One always can."""
        ledger = self._ledger
        ledger.claim = None
        while True:
            refused = {}
            for sequence in ledger.highest_first():
                refusal = builder.force(sequence)
                if refusal is None:
                    return
                refused[sequence.id] = refusal
            if not ledger.pool.unpin_latest():
                raise InvariantBroken(f"no sequence can make progress: {refused}")
