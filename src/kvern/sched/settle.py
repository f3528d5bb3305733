"""Applies what came back of a plan: counters, tokens, spans, ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from kvern.core.errors import InvariantBroken
from kvern.core.events import Delta
from kvern.core.plan import Fault, Finish, OpenSpan, Slice, StepReport, TokenLogprobs
from kvern.sched.lanes import Flight, Lane
from kvern.sched.ledger import Ledger
from kvern.sched.sequence import Sequence, State


class Settler:
    """Turns reports into changes of the ledger and into deltas."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._prompt_logprobs: dict[int, list[TokenLogprobs | None]] = {}  # until the first delta

    def report(self, flight: Flight, report: StepReport) -> tuple[list[Delta], bool]:
        """Deltas of a plan that ran, and whether nothing but new tokens happened.

        Raises InvariantBroken when the report does not fit the plan.
        """
        emitting = len(flight.plan.slices) if flight.plain else sum(piece.emits for piece in flight.plan.slices)
        if len(report.tokens) != emitting:
            raise InvariantBroken(f"step {report.step} sampled {len(report.tokens)} tokens for {emitting} slices")
        told = report.finished or report.opens or report.untouched or report.faults
        if flight.plain and not (told or report.logprobs or report.prompt_logprobs):
            return self._plain(flight, report.tokens)
        return self._full(flight, report), False

    def _plain(self, flight: Flight, tokens: tuple[int, ...]) -> tuple[list[Delta], bool]:
        """The hot path: every slice sampled one token, and nobody stopped."""
        deltas: list[Delta] = []
        add, running, cached, seal = deltas.append, State.RUNNING, self._ledger.cached, self._ledger.seal
        calm = True
        for sequence, token, piece in zip(flight.sequences, tokens, flight.plan.slices, strict=True):
            known = sequence.known
            if sequence.state is not running or token < 0 or len(known) + 1 >= sequence.limit or cached:
                calm = False
                self._one(sequence, piece, token, add)
                continue
            sequence.flights -= 1
            sequence.pending -= 1
            sequence.computed += 1
            known.append(token)
            if sequence.computed >= sequence.view.seal_at:
                seal(sequence)
            add(Delta(sequence.id, (token,)))
        self._ledger.count.generation_tokens += (
            sum(len(delta.tokens) for delta in deltas) if not calm else len(deltas)
        )
        return deltas, calm

    def _full(self, flight: Flight, report: StepReport) -> list[Delta]:
        self._keep_prompt_logprobs(report)
        deltas: list[Delta] = []
        finished = {item.sequence: item for item in report.finished}
        faults = {item.sequence: item for item in report.faults}
        opens = {item.sequence: item for item in report.opens}
        logprobs = dict(report.logprobs)
        untouched = frozenset(report.untouched)
        tokens = iter(report.tokens)
        for sequence, piece in zip(flight.sequences, flight.plan.slices, strict=True):
            token = next(tokens) if piece.emits else -1
            key = sequence.id
            if key in opens or key in untouched:
                self._stopped(sequence, piece, opens.get(key))
            elif key in faults:
                self._fault(sequence, piece, faults[key], deltas.append)
            else:
                self._one(sequence, piece, token, deltas.append, finished.get(key), logprobs.get(key))
        self._ledger.count.generation_tokens += sum(len(delta.tokens) for delta in deltas)
        return deltas

    def _one(
        self,
        sequence: Sequence,
        piece: Slice,
        token: int,
        add: Callable[[Delta], None],
        finish: Finish | None = None,
        logprobs: TokenLogprobs | None = None,
    ) -> None:
        """A slice that went all the way, for a sequence in any state."""
        if self._land(sequence, piece) is State.ENDED:
            return
        ledger = self._ledger
        if piece.unit_end != ledger.config.units or (piece.emits and token < 0):
            ledger.end(sequence)
            add(self._last(sequence, "error", error="the device reported neither a token nor an open span"))
            return
        sequence.computed, sequence.parked = piece.end, None
        if sequence.computed >= sequence.view.seal_at:
            ledger.seal(sequence)
        if piece.emits:
            self._token(sequence, token, add, finish, logprobs)
        if not sequence.flights and sequence.state is not State.RUNNING and sequence.id in ledger.live:
            ledger.settle_state(sequence)

    def _land(self, sequence: Sequence, piece: Slice) -> State:
        """One flight less. A sequence that is over gives back its pages here; its tokens are void."""
        sequence.flights -= 1
        if piece.emits and sequence.pending:
            sequence.pending -= 1
        if sequence.state is State.ENDED and not sequence.flights:
            self._ledger.settle_state(sequence)
            return State.ENDED
        return sequence.state

    def _token(
        self,
        sequence: Sequence,
        token: int,
        add: Callable[[Delta], None],
        finish: Finish | None,
        logprobs: TokenLogprobs | None,
    ) -> None:
        """A new token; perhaps the first one that the client sees, perhaps the last."""
        ledger, key = self._ledger, sequence.id
        sequence.known.append(token)
        delta = Delta(
            key,
            (token,),
            logprobs=() if logprobs is None else (logprobs,),
            prompt_logprobs=tuple(self._prompt_logprobs.pop(key, ())),
            finish=None if finish is None else finish.reason,
            stop_token=None if finish is None else finish.stop_token,
            cached_tokens=ledger.cached.pop(key, 0),
        )
        if finish is None and len(sequence.known) >= sequence.limit:
            delta = msgspec.structs.replace(delta, finish="length")
        add(delta)
        if delta.finish is not None:
            self.forget(sequence)
            ledger.end(sequence)

    def _stopped(self, sequence: Sequence, piece: Slice, span: OpenSpan | None) -> None:
        """A slice that ended above the last unit, by plan or by interrupt, or was not begun."""
        ledger = self._ledger
        if span is not None:
            fits = (span.begin, span.end) == (piece.begin, piece.end) and piece.unit_begin < span.unit
            if not (fits and span.unit <= piece.unit_end and span.unit < ledger.config.units):
                raise InvariantBroken(f"{span} does not fit {piece}")
        if self._land(sequence, piece) is State.ENDED:
            return
        sequence.planned = min(sequence.planned, piece.begin)
        if span is not None:
            sequence.parked = span
        if not sequence.flights and sequence.state is State.YIELDING:
            ledger.settle_state(sequence)

    def _fault(self, sequence: Sequence, piece: Slice, fault: Fault, add: Callable[[Delta], None]) -> None:
        self._ledger.distrust(sequence)
        if self._land(sequence, piece) is not State.ENDED:
            self._ledger.end(sequence)
            add(self._last(sequence, "error", error=fault.message))

    def _last(self, sequence: Sequence, reason: str, error: str | None = None) -> Delta:
        self.forget(sequence)
        return Delta(sequence.id, finish=reason, error=error)

    def close(self, sequence: Sequence, reason: str, error: str | None = None) -> Delta:
        """End a live sequence for a reason from outside its steps."""
        self._ledger.end(sequence)
        return self._last(sequence, reason, error)

    def forget(self, sequence: Sequence) -> None:
        """Drop what was kept for its first delta."""
        self._prompt_logprobs.pop(sequence.id, None)

    def _keep_prompt_logprobs(self, report: StepReport) -> None:
        for key, position, entry in report.prompt_logprobs:
            sequence = self._ledger.live.get(key)
            if sequence is not None and 0 < position < len(sequence.request.prompt):
                rows = self._prompt_logprobs.setdefault(key, [None] * len(sequence.request.prompt))
                rows[position] = entry

    # -- plans that did not run ---------------------------------------------------------------------------------

    def failed(self, lane: Lane, flight: Flight) -> None:
        """Nothing of the plan counts: cursors stay. Plans queued behind it are void too, once they are reported.

        What the device knows of their sequences is uncertain, so they are started there again; open spans are lost.
        """
        for queued in (flight, *lane.flights):
            queued.doomed = True
            self._ledger.device.leaving.update(dict.fromkeys(queued.plan.ends))
            for sequence in queued.sequences:
                sequence.rewind()
                if sequence.state is State.RUNNING:
                    self._ledger.device.unsure.add(sequence.id)
        self.void(flight.sequences)

    def void(self, sequences: Iterable[Sequence]) -> None:
        """A plan whose results do not count is over."""
        for sequence in sequences:
            sequence.flights -= 1
            if not sequence.flights and sequence.state is not State.RUNNING:
                self._ledger.settle_state(sequence)
