"""Builds one plan from the takes of a composing policy. A take is checked, gets its memory, or changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kvern.core.plan import PageGrant, Plan, SequenceStart, Slice
from kvern.core.views import Policies, Refusal, SequenceView, View
from kvern.sched.lanes import Flight, Lane
from kvern.sched.ledger import Ledger
from kvern.sched.memory import secure
from kvern.sched.sequence import Sequence, State

Cut = Callable[[Sequence], tuple[int, int]]


class PlanBuilder:
    """See ``kvern.core.views.Builder`` for what policies may call."""

    def __init__(self, ledger: Ledger, policies: Policies, view: View, lane: Lane) -> None:
        self._ledger, self._policies, self._lane = ledger, policies, lane
        self.view = view
        self.lane = lane.number
        self.room = ledger.config.max_step_tokens
        self.wake: float | None = None
        self._slices: dict[int, Slice] = {}
        self._sequences: dict[int, Sequence] = {}
        self._starts: dict[int, SequenceStart] = {}
        self._grants: dict[int, PageGrant] = {}
        self._ends: dict[int, None] = {}
        self._robbed: set[int] = set()

    # -- for policies -------------------------------------------------------------------------------------------

    def running(self) -> list[SequenceView]:
        return [item for item in self._ledger.running.values() if self._gate(item) is None]

    def waiting(self) -> Iterator[SequenceView]:
        group = self._lane.quarantine.group
        for item in self._policies.order.arrange(self.view):
            if group is None or item.id in group:
                yield item

    def offer(self, sequence: SequenceView, room: int | None = None) -> Refusal | None:
        most = self.room if room is None else min(room, self.room)
        if most <= 0:
            return Refusal.BUDGET
        return self._attempt(sequence, lambda item: self._policies.slicing.cut(item, most, self.view))

    def take(self, sequence: SequenceView, tokens: int, unit_end: int) -> Refusal | None:
        return self._attempt(sequence, lambda _: (tokens, unit_end))

    def wait_until(self, at_s: float) -> None:
        self.wake = at_s if self.wake is None else min(self.wake, at_s)

    # -- for the mechanism --------------------------------------------------------------------------------------

    @property
    def empty(self) -> bool:
        return not self._slices

    def force(self, sequence: Sequence) -> Refusal | None:
        """Take as much as fits, whatever admission and slicing policies say."""
        units = self._ledger.config.units
        return self._attempt(sequence, lambda item: (min(item.work, self.room), units), forced=True)

    def finish(self) -> Flight:
        """The plan, in flight from now on."""
        ledger, lane, units = self._ledger, self._lane, self._ledger.config.units
        ends = tuple({**ledger.device.leaving, **self._ends})
        ledger.device.leaving.clear()
        for sequence in ends:
            ledger.device.departing[sequence] = lane.number
        slices = tuple(self._slices.values())
        interruptible = self._policies.preemption.interruptible and bool(slices)
        plan = Plan(
            step=lane.next_step,
            lane=lane.number,
            slices=slices,
            starts=tuple(self._starts.values()),
            grants=tuple(self._grants.values()),
            ends=ends,
            interruptible=interruptible,
        )
        plain = all(piece.emits and piece.end - piece.begin == 1 and not piece.unit_begin for piece in slices)
        closed = not interruptible and all(piece.unit_end == units for piece in slices)
        return Flight(plan, list(self._sequences.values()), plain, closed)

    def _attempt(self, choice: SequenceView, cut: Cut, *, forced: bool = False) -> Refusal | None:
        sequence = self._ledger.live.get(choice.id)
        if sequence is None:
            return Refusal.CURSOR
        refusal = self._gate(sequence)
        if refusal is not None:
            return refusal
        if sequence.state is State.WAITING:
            return self._enter(sequence, cut, forced)
        return self._place(sequence, cut(sequence), cover=0)

    def _gate(self, sequence: Sequence) -> Refusal | None:
        """What speaks against any slice of this sequence in this plan."""
        if sequence.id in self._slices or sequence.state is State.YIELDING or sequence.work <= 0:
            return Refusal.CURSOR
        if sequence.flights and sequence.lane != self.lane:
            return Refusal.LANE
        if self._ledger.device.departing.get(sequence.id, self.lane) != self.lane:
            return Refusal.LANE
        group = self._lane.quarantine.group
        if group is not None and sequence.id not in group:
            return Refusal.QUARANTINE
        return Refusal.MEMORY if sequence.id in self._robbed else None

    def _enter(self, sequence: Sequence, cut: Cut, forced: bool) -> Refusal | None:
        """Admit a waiting sequence, starting from what the prefix index has; undone when no slice can be placed."""
        ledger = self._ledger
        if len(ledger.running) >= ledger.config.max_running:
            return Refusal.SEATS
        cover = self._policies.admission.admit(sequence, self.view)
        if ledger.immune(sequence):
            cover = sequence.limit if cover is not None or forced else None
        if cover is None and not forced:
            return Refusal.ADMISSION
        hits = ledger.hits(sequence)
        ledger.pool.share(hits)
        sequence.view.begin_with(ledger.index.root(sequence.request.cache_salt), hits)
        sequence.computed = sequence.planned = sequence.view.shared
        refusal = self._place(sequence, cut(sequence), cover or 0)
        if refusal is None:
            ledger.enter(sequence)
        else:
            ledger.pool.release(hits)
            sequence.view.clear()
            sequence.computed = sequence.planned = 0
        return refusal

    def _place(self, sequence: Sequence, cut: tuple[int, int], cover: int) -> Refusal | None:
        """Check a slice against the cursor or open span, get its pages, and put it into the plan."""
        tokens, unit_end = cut
        span, units = sequence.open, self._ledger.config.units
        begin, unit_begin = (sequence.planned, 0) if span is None else (span.begin, span.unit)
        end = begin + tokens
        if tokens <= 0 or tokens > self.room:
            return Refusal.BUDGET
        if end > sequence.length or not unit_begin < unit_end <= units or (span is not None and end != span.end):
            return Refusal.CURSOR
        reach = min(max(end, cover), sequence.limit)
        pages: list[int] | None = []
        if reach > sequence.view.capacity:
            need = self._ledger.config.pages_for(reach) - sequence.view.count
            pages = secure(self._ledger, self._policies.preemption, self.view, sequence, need, self._rob)
        if pages is None:
            return Refusal.MEMORY
        self._introduce(sequence, pages)
        emits = unit_end == units and end == sequence.length
        self._slices[sequence.id] = Slice(sequence.id, begin, end, unit_begin, unit_end, emits)
        self._sequences[sequence.id] = sequence
        sequence.lane = self.lane
        sequence.flights += 1
        if unit_end == units:
            sequence.planned = end
            sequence.pending += emits
        self.room -= tokens
        return None

    def _introduce(self, sequence: Sequence, pages: list[int]) -> None:
        """Tell the device of new pages, and of the sequence when it may not know it."""
        ledger, key = self._ledger, sequence.id
        grant = ledger.grant(sequence, pages) if pages else None
        unsure = key in ledger.device.unsure
        if sequence.state is State.WAITING or unsure:
            if unsure:
                ledger.device.unsure.discard(key)
                self._ends[key] = None
            request = sequence.request
            self._starts[key] = SequenceStart(key, tuple(sequence.known), len(request.prompt), request.sampling)
            grant = PageGrant(key, 0, tuple(sequence.view.pages()))
        if grant is not None:
            self._grants[key] = grant

    def _rob(self, victim: Sequence) -> None:
        """Take a sequence's memory, and its slice out of this plan if it has one."""
        key = victim.id
        self._starts.pop(key, None)
        self._grants.pop(key, None)
        piece = self._slices.pop(key, None)
        if piece is not None:
            del self._sequences[key]
            self.room += piece.end - piece.begin
            victim.flights -= 1
        self._robbed.add(key)
        self._ledger.preempt(victim)
