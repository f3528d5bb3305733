"""A model of a device for tests of the control core: it holds "KV" in pages and checks every law it can see.

The next token is a hash of all tokens before it, so any mistake in cursors, pages or sharing shows as a wrong token
or as an assertion. Each position of a page holds (hash of the tokens up to there, units done).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

from kvern.core.events import LaneFailed, Stepped
from kvern.core.plan import Fault, Finish, OpenSpan, Plan, Slice, StepReport
from kvern.core.request import Request

VOCAB = 50


def next_token(tokens: list[int]) -> int:
    """The token that this "model" says after ``tokens``."""
    return int.from_bytes(blake2b(bytes(t % 251 for t in tokens), digest_size=4).digest(), "little") % VOCAB


def expected(request: Request) -> tuple[list[int], str]:
    """Tokens that are to be emitted, and why it ends."""
    tokens, out = [*request.prompt, *request.accepted], []
    while True:
        tokens.append(next_token(tokens))
        out.append(tokens[-1])
        if tokens[-1] in request.sampling.stop_token_ids:
            return out, "stop"
        if len(tokens) - len(request.prompt) >= request.sampling.max_tokens:
            return out, "length"


@dataclass
class Resident:
    """A sequence on the device."""

    tokens: list[int]
    prompt: int
    max_tokens: int
    stops: tuple[int, ...]
    table: list[int] = field(default_factory=list)
    done: dict[int, int] = field(default_factory=dict)  # position -> units executed since it started here
    parked: tuple[int, int, int] | None = None
    over: bool = False
    broken: bool = False


@dataclass
class ModelDevice:
    """Executes plans when told to, in order per lane."""

    pages: int
    page_tokens: int
    units: int
    residents: dict[int, Resident] = field(default_factory=dict)
    kv: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    rows: int = 0

    def fail(self, plan: Plan, message: str, *, applied: bool) -> LaneFailed:
        """The plan could not run; its structural part may have been applied, or a part of it, or nothing."""
        if applied:
            with contextlib.suppress(AssertionError, KeyError):
                self._apply(plan)
        return LaneFailed(plan.lane, plan.step, message)

    def run_in_vain(self, plan: Plan) -> Stepped | LaneFailed:
        """A plan whose input was never computed fails, or leaves garbage behind and says that all went well."""
        failed = self.fail(plan, "a plan before it failed", applied=True)
        if plan.step % 2:
            return failed
        for piece in plan.slices:
            table = self.residents[piece.sequence].table if piece.sequence in self.residents else []
            for position in range(piece.begin, min(piece.end, len(table) * self.page_tokens)):
                self.kv[table[position // self.page_tokens], position % self.page_tokens] = (0, self.units)
        return Stepped(StepReport(plan.step, plan.lane, (7,) * sum(piece.emits for piece in plan.slices)))

    def run(
        self, plan: Plan, *, stop_at: Callable[[Slice], int] | None = None, faulty: frozenset[int] = frozenset()
    ) -> Stepped:
        """Run a plan. ``stop_at(slice)`` is the unit it reaches when the plan is interrupted."""
        self._apply(plan)
        tokens, finished, opens, untouched, faults = [], [], [], [], []
        for piece in plan.slices:
            resident = self.residents[piece.sequence]
            if resident.over:
                tokens += [-1] * piece.emits
                continue
            if piece.sequence in faulty:
                resident.over = True
                faults.append(Fault(piece.sequence, "made to fail"))
                tokens += [-1] * piece.emits
                continue
            reached = (
                piece.unit_end if stop_at is None else min(piece.unit_end, max(piece.unit_begin, stop_at(piece)))
            )
            self._compute(piece, reached)
            if reached < self.units:
                tokens += [-1] * piece.emits
                if reached == piece.unit_begin:
                    untouched.append(piece.sequence)
                else:
                    resident.parked = (piece.begin, piece.end, reached)
                    opens.append(OpenSpan(piece.sequence, piece.begin, piece.end, reached))
                continue
            resident.parked = None
            if piece.emits:
                tokens.append(self._sample(piece, finished))
        return Stepped(
            StepReport(
                plan.step, plan.lane, tuple(tokens), tuple(finished), tuple(opens), tuple(untouched), tuple(faults)
            )
        )

    def _apply(self, plan: Plan) -> None:
        for sequence in plan.ends:
            self.residents.pop(sequence, None)
        for start in plan.starts:
            self.residents[start.sequence] = Resident(
                list(start.tokens), start.prompt_tokens, start.sampling.max_tokens, start.sampling.stop_token_ids
            )
        for grant in plan.grants:
            table = self.residents[grant.sequence].table
            assert grant.first <= len(table), f"a gap in the block table of {grant.sequence}"
            assert all(0 <= page < self.pages for page in grant.pages)
            table[grant.first :] = grant.pages
            assert len(set(table)) == len(table)
        assert not plan.copies

    def _history(self, resident: Resident, end: int) -> int:
        return hash((end, *resident.tokens[:end]))

    def _compute(self, piece: Slice, reached: int) -> None:
        resident = self.residents[piece.sequence]
        assert piece.begin < piece.end <= len(resident.tokens), f"{piece} reads unknown tokens"
        assert 0 <= piece.unit_begin < piece.unit_end <= self.units
        last = piece.end == len(resident.tokens) and piece.unit_end == self.units
        assert piece.emits == last, f"{piece} emits wrongly; {len(resident.tokens)} tokens known"
        if piece.unit_begin:
            assert resident.parked == (piece.begin, piece.end, piece.unit_begin), f"{piece}: {resident.parked}"
        else:
            assert resident.parked is None, f"{piece} leaves an open span behind"
        for position in range(piece.begin):
            where = (resident.table[position // self.page_tokens], position % self.page_tokens)
            found = self.kv.get(where)
            assert found is not None and found[0] == self._history(resident, position + 1), (
                f"{piece}: KV at {position}"
            )
            assert found[1] == self.units
        for position in range(piece.begin, piece.end):
            self.rows += 1
            assert resident.done.get(position, 0) == piece.unit_begin, f"{piece}: {position} executed twice or never"
            resident.done[position] = reached
            where = (resident.table[position // self.page_tokens], position % self.page_tokens)
            if reached > piece.unit_begin:
                self.kv[where] = (self._history(resident, position + 1), reached)

    def _sample(self, piece: Slice, finished: list[Finish]) -> int:
        resident = self.residents[piece.sequence]
        token = next_token(resident.tokens)
        resident.tokens.append(token)
        if token in resident.stops:
            finished.append(Finish(piece.sequence, "stop", token))
        elif len(resident.tokens) - resident.prompt >= resident.max_tokens:
            finished.append(Finish(piece.sequence, "length"))
        resident.over = bool(finished) and finished[-1].sequence == piece.sequence
        return token
