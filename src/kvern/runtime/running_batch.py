"""The sequences on a device as arrays, one row ("slot") each, updated in place from plan to plan."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvern.core.errors import InvariantBroken
from kvern.core.plan import PageGrant, Plan, SequenceStart, Slice
from kvern.runtime.device import PAGE_TOKENS, StepBatch
from kvern.runtime.sampler import SamplingTable

NO_SLOT = -1


@dataclass(slots=True)
class Parked:
    """The residual rows of an open span: ``rows[i]`` is token ``begin + i`` before unit ``unit``."""

    begin: int
    end: int
    unit: int
    rows: NDArray[np.float32]


@dataclass(slots=True)
class Layout:
    """Where the slices of one device call lie. S slices; E emit from logits, G the likeliest token."""

    slices: list[Slice]
    slots: NDArray[np.int64]  # [S]
    begin: NDArray[np.int32]  # [S]
    end: NDArray[np.int32]  # [S]
    emitting: NDArray[np.int64]  # [E] indices of slices
    logits_at: NDArray[np.int64]  # [E] row of the call's logits that belongs to each of them
    greedy: NDArray[np.int64]  # [G] indices of slices


@dataclass(slots=True)
class RunningBatch:
    """State of every sequence on the device. ``context`` bounds prompt and output together, in tokens."""

    context: int
    hidden_size: int
    units: int
    slots: int = 8
    tail_slots: int = 0  # sequences whose newest tokens the device keeps outside the pages; 0: it keeps none
    slot_of: dict[int, int] = field(default_factory=dict)
    parked: dict[int, Parked] = field(default_factory=dict)  # by sequence
    over: set[int] = field(default_factory=set)  # finished or faulted; their later slices are void
    broken: set[int] = field(default_factory=set)  # interrupted; slices planned before that are stale
    tokens: NDArray[np.int32] = field(init=False)  # [slots, context + 1]
    block_table: NDArray[np.int32] = field(init=False)  # [slots, pages of a full context]
    known: NDArray[np.int32] = field(init=False)  # [slots] tokens known: prompt and generated
    prompt: NDArray[np.int32] = field(init=False)  # [slots] prompt tokens
    cursor: NDArray[np.int32] = field(init=False)  # [slots] tokens finished through all units
    sampling: SamplingTable = field(init=False)
    _free: list[int] = field(init=False)
    _hidden: NDArray[np.float32] = field(init=False)  # scratch, grows to the largest step

    def __post_init__(self) -> None:
        pages = self.context // PAGE_TOKENS + 1
        self.tokens = np.zeros((self.slots, self.context + 1), np.int32)
        self.block_table = np.zeros((self.slots, pages), np.int32)
        self.known, self.prompt, self.cursor = (np.zeros(self.slots, np.int32) for _ in range(3))
        self.sampling = SamplingTable(self.slots)
        self._free = list(range(self.slots - 1, -1, -1))
        self._hidden = np.zeros((0, self.hidden_size), np.float32)

    # -- changes that come with a plan ------------------------------------------------------------------------

    def apply(self, plan: Plan) -> None:
        """Ends, starts and grants, in that order. Page copies are the device's business."""
        for sequence in plan.ends:
            self._end(sequence)
        for start in plan.starts:
            self._start(start)
        for grant in plan.grants:
            self._grant(grant)

    def _end(self, sequence: int) -> None:
        """Forget a sequence. After a failed plan the core ends and starts again what may or may not be here."""
        slot = self.slot_of.pop(sequence, NO_SLOT)
        if slot == NO_SLOT:
            return
        self.parked.pop(sequence, None)
        self.over.discard(sequence)
        self.broken.discard(sequence)
        self.sampling.clear(slot)
        self._free.append(slot)

    def _start(self, start: SequenceStart) -> None:
        self._end(start.sequence)
        count = len(start.tokens)
        if not 0 < start.prompt_tokens <= count <= self.context:
            raise InvariantBroken(f"sequence {start.sequence} has {count} tokens of {self.context}")
        if not self._free:
            self._grow()
        slot = self._free.pop()
        if 0 < self.tail_slots <= slot:
            self._free.append(slot)
            raise InvariantBroken(f"{self.tail_slots} sequences are on the device, and it keeps tails of no more")
        self.slot_of[start.sequence] = slot
        self.tokens[slot, :count] = start.tokens
        self.known[slot], self.prompt[slot], self.cursor[slot] = count, start.prompt_tokens, 0
        self.sampling.set(slot, start.sampling)

    def _grant(self, grant: PageGrant) -> None:
        slot = self.slot_of[grant.sequence]
        last = grant.first + len(grant.pages)
        if last > self.block_table.shape[1]:
            raise InvariantBroken(f"sequence {grant.sequence} is granted page {last} of {self.block_table.shape[1]}")
        self.block_table[slot, grant.first : last] = grant.pages

    def _grow(self) -> None:
        old, self.slots = self.slots, self.slots * 2
        for name in ("tokens", "block_table", "known", "prompt", "cursor"):
            before = getattr(self, name)
            after = np.zeros((self.slots, *before.shape[1:]), before.dtype)
            after[:old] = before
            setattr(self, name, after)
        self.sampling.grow(self.slots)
        self._free.extend(range(self.slots - 1, old - 1, -1))

    # -- what of a plan is still to be run ----------------------------------------------------------------------

    def select(self, plan: Plan) -> tuple[list[Slice], list[int]]:
        """Slices still to be run, and sequences whose slices an interrupt made stale (untouched).

        A plan queued behind another may hold slices of sequences that finished meanwhile; those are void.
        """
        if not self.over and not self.broken:
            return list(plan.slices), []
        live, untouched = [], []
        for piece in plan.slices:
            if piece.sequence in self.over:
                continue
            if piece.sequence in self.broken and not self._continues(piece):
                untouched.append(piece.sequence)
                continue
            self.broken.discard(piece.sequence)
            live.append(piece)
        return live, untouched

    def _continues(self, piece: Slice) -> bool:
        if piece.unit_begin == 0:
            return piece.begin <= int(self.cursor[self.slot_of[piece.sequence]])
        span = self.parked.get(piece.sequence)
        return span is not None and (span.begin, span.end, span.unit) == (piece.begin, piece.end, piece.unit_begin)

    # -- one device call -----------------------------------------------------------------------------------------

    def lay_out(
        self, slices: list[Slice], stop: NDArray[np.uint8], all_logits: bool = False
    ) -> tuple[StepBatch, Layout]:
        """Arrays of one device call over ``slices``. ``all_logits`` wants the logits of every row.

        Raises InvariantBroken when a slice reads tokens that are not known or residual rows that are not parked.
        """
        slot_of = self.slot_of
        table = np.array(
            [(slot_of[s.sequence], s.begin, s.end, s.unit_begin, s.unit_end, s.emits) for s in slices], np.int32
        )
        slots, begin, end = table[:, 0].astype(np.int64), table[:, 1], table[:, 2]
        self._check(slices, slots, table)
        counts = end - begin
        row_begin = np.zeros(len(slices) + 1, np.int32)
        np.cumsum(counts, out=row_begin[1:])
        rows = int(row_begin[-1])
        positions = np.arange(rows, dtype=np.int32) + np.repeat(begin - row_begin[:-1], counts)
        likeliest = self.sampling.rows["likeliest"][slots] & (not all_logits)
        emitting = np.flatnonzero((table[:, 5] != 0) & ~likeliest)
        greedy = np.flatnonzero((table[:, 5] != 0) & likeliest)
        last_rows = row_begin[1:] - 1
        if all_logits:
            logit_rows, logits_at = np.arange(rows, dtype=np.int32), last_rows[emitting].astype(np.int64)
        else:
            logit_rows, logits_at = last_rows[emitting], np.arange(len(emitting))
        pages = (int(end.max()) + PAGE_TOKENS - 1) // PAGE_TOKENS
        batch = StepBatch(
            tokens=self.tokens[np.repeat(slots, counts), positions],
            positions=positions,
            row_begin=row_begin,
            unit_begin=np.ascontiguousarray(table[:, 3]),
            unit_end=np.ascontiguousarray(table[:, 4]),
            block_table=self.block_table[slots, :pages],
            hidden=self._hidden_rows(slices, row_begin, table[:, 3]),
            logit_rows=logit_rows,
            stop=stop,
            greedy_rows=last_rows[greedy],
            tail_slot=slots.astype(np.int32) if self.tail_slots else None,
        )
        return batch, Layout(slices, slots, begin, end, emitting, logits_at, greedy)

    def _check(self, slices: list[Slice], slots: NDArray[np.int64], table: NDArray[np.int32]) -> None:
        begin, end, unit_begin, unit_end, emits = table.T[1:]
        known = self.known[slots]
        shape = (
            (begin < end) & (end <= known) & (unit_begin < unit_end) & (unit_end <= self.units) & (unit_begin >= 0)
        )
        emission = (emits == 0) | ((end == known) & (unit_end == self.units))
        wrong = np.flatnonzero(~(shape & emission))
        if len(wrong):
            piece = slices[int(wrong[0])]
            raise InvariantBroken(f"{piece} does not fit its sequence, which knows {known[int(wrong[0])]} tokens")

    def _hidden_rows(
        self, slices: list[Slice], row_begin: NDArray[np.int32], unit_begin: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        rows = int(row_begin[-1])
        if rows > len(self._hidden):
            self._hidden = np.zeros((rows, self.hidden_size), np.float32)
        hidden = self._hidden[:rows]
        for index in np.flatnonzero(unit_begin).tolist():
            piece = slices[index]
            span = self.parked.get(piece.sequence)
            if span is None or span.unit != piece.unit_begin or not span.begin <= piece.begin < piece.end <= span.end:
                raise InvariantBroken(f"{piece} continues a span that is not parked")
            first = int(row_begin[index])
            hidden[first : first + piece.end - piece.begin] = span.rows[
                piece.begin - span.begin : piece.end - span.begin
            ]
        return hidden

    def park(self, piece: Slice, unit: int, rows: NDArray[np.float32]) -> None:
        """Keep the residual rows of a slice that ended before the last unit."""
        self.parked[piece.sequence] = Parked(piece.begin, piece.end, unit, rows.copy())

    def advance(self, slots: NDArray[np.int64], end: NDArray[np.int32]) -> None:
        """These sequences finished their tokens up to ``end`` through all units."""
        self.cursor[slots] = end

    def append(self, slots: NDArray[np.int64], tokens: NDArray[np.int32]) -> None:
        """One new token for each slot."""
        self.tokens[slots, self.known[slots]] = tokens
        self.known[slots] += 1
