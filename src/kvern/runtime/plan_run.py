"""One plan on the device: the calls it takes, the tokens chosen from them, and the report."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from kvern.core.plan import Fault, Finish, OpenSpan, Plan, Slice, StepReport, TokenLogprobs
from kvern.kernels.sampling import FAULT_NONE, FAULT_NOT_FINITE, FAULT_NOTHING_ALLOWED
from kvern.runtime.device import Device, StepBatch, StepResult
from kvern.runtime.running_batch import Layout, RunningBatch
from kvern.runtime.sampler import Sampler

FAULT_MESSAGES = {
    FAULT_NOT_FINITE: "the model's logits are not finite",
    FAULT_NOTHING_ALLOWED: "no token is allowed here",
}


class PlanRun:
    """Collects what the device calls of one plan did. Used once, by one thread, under the device's lock."""

    def __init__(self, device: Device, batch: RunningBatch, sampler: Sampler, plan: Plan) -> None:
        self._device, self._batch, self._sampler, self._plan = device, batch, sampler, plan
        emitting = [piece.sequence for piece in plan.slices if piece.emits]
        self._number = {sequence: number for number, sequence in enumerate(emitting)}
        self._tokens = np.full(len(emitting), -1, np.int64)
        self.live, self._untouched = batch.select(plan)
        self._seconds = 0.0
        self._finished: list[Finish] = []
        self._opens: list[OpenSpan] = []
        self._faults: list[Fault] = []
        self._logprobs: list[tuple[int, TokenLogprobs]] = []
        self._prompt_logprobs: list[tuple[int, int, TokenLogprobs]] = []

    def call(self, slices: list[Slice], stop: NDArray[np.uint8], *, all_logits: bool) -> None:
        """Run one device call over ``slices``; ``all_logits`` also scores the prompt tokens after its rows."""
        batch, layout = self._batch.lay_out(slices, stop, all_logits)
        began = time.perf_counter()
        result = self._device.step(batch)
        self._seconds += time.perf_counter() - began
        if all_logits:
            self._score_prompt(layout, result.logits)
        self._settle(layout, batch, result)
        self._emit(layout, result)

    def report(self) -> StepReport:
        """What the whole plan did, once all its calls have run."""
        return StepReport(
            step=self._plan.step,
            lane=self._plan.lane,
            tokens=tuple(self._tokens.tolist()),
            finished=tuple(self._finished),
            opens=tuple(self._opens),
            untouched=tuple(self._untouched),
            faults=tuple(self._faults),
            logprobs=tuple(self._logprobs),
            prompt_logprobs=tuple(self._prompt_logprobs),
            seconds=self._seconds,
        )

    def _settle(self, layout: Layout, batch: StepBatch, result: StepResult) -> None:
        """Move cursors; park the residual rows of slices that ended, or were stopped, before the last unit."""
        through = result.reached == self._device.units
        if through.all():
            self._batch.advance(layout.slots, layout.end)
        else:
            self._batch.advance(layout.slots[through], layout.end[through])
            for index in np.flatnonzero(~through).tolist():
                self._stopped_early(layout.slices[index], int(result.reached[index]), batch, index)
        if self._batch.parked:
            for piece, done in zip(layout.slices, through.tolist(), strict=True):
                span = self._batch.parked.get(piece.sequence)
                if done and span is not None and span.end <= piece.end:
                    del self._batch.parked[piece.sequence]

    def _stopped_early(self, piece: Slice, reached: int, batch: StepBatch, index: int) -> None:
        if reached < piece.unit_end:
            self._batch.broken.add(piece.sequence)
        if reached == piece.unit_begin:
            self._untouched.append(piece.sequence)
            return
        rows = batch.hidden[batch.row_begin[index] : batch.row_begin[index + 1]]
        self._batch.park(piece, reached, rows)
        self._opens.append(OpenSpan(piece.sequence, piece.begin, piece.end, reached))

    def _emit(self, layout: Layout, result: StepResult) -> None:
        """Give every emitting slice that reached the last unit its token, and see who is finished."""
        through = result.reached == self._device.units
        if len(layout.greedy):
            kept = through[layout.greedy]
            tokens = result.greedy[kept]
            faults = np.where(tokens < 0, FAULT_NOT_FINITE, FAULT_NONE)
            self._accept(layout, layout.greedy[kept], tokens, faults)
        kept = through[layout.emitting]
        index, at = layout.emitting[kept], layout.logits_at[kept]
        if len(index):
            logits = result.logits if len(at) == len(result.logits) else result.logits[at]
            tokens, faults = self._sampler.choose(logits, layout.slots[index], self._batch)
            self._score(layout, index[tokens >= 0], logits[tokens >= 0], tokens[tokens >= 0])
            self._accept(layout, index, tokens, faults)

    def _fault(self, sequence: int, message: str) -> None:
        self._faults.append(Fault(sequence, message))
        self._batch.over.add(sequence)

    def _score(
        self, layout: Layout, index: NDArray[np.int64], logits: NDArray[np.float32], tokens: NDArray[np.int32]
    ) -> None:
        """Log-probabilities of chosen tokens, for the requests that want them."""
        wanted = self._batch.sampling.rows["logprobs"][layout.slots[index]]
        for row in np.flatnonzero(wanted >= 0).tolist():
            (scored,) = self._sampler.score(logits[row : row + 1], tokens[row : row + 1], int(wanted[row]))
            self._logprobs.append((layout.slices[index[row]].sequence, scored))

    def _accept(
        self, layout: Layout, index: NDArray[np.int64], tokens: NDArray[np.int32], faults: NDArray[np.integer]
    ) -> None:
        """Append the tokens of the slices ``index``; a slice without one faults its sequence."""
        if (tokens < 0).any():
            for row in np.flatnonzero(tokens < 0).tolist():
                self._fault(layout.slices[index[row]].sequence, FAULT_MESSAGES[int(faults[row])])
            index, tokens = index[tokens >= 0], tokens[tokens >= 0]
        slots = layout.slots[index]
        sequences = [layout.slices[i].sequence for i in index.tolist()]
        self._batch.append(slots, tokens)
        self._tokens[[self._number[sequence] for sequence in sequences]] = tokens
        self._finish(slots, sequences, tokens)

    def _finish(self, slots: NDArray[np.int64], sequences: list[int], tokens: NDArray[np.int32]) -> None:
        state = self._batch
        generated = state.known[slots] - state.prompt[slots]
        stopped = (state.sampling.stops[slots] == tokens[:, None]).any(axis=1)
        stopped &= generated > state.sampling.rows["min_tokens"][slots]
        full = (generated >= state.sampling.rows["max_tokens"][slots]) | (state.known[slots] >= state.context)
        for row in np.flatnonzero(stopped | full).tolist():
            reason, stop_token = ("stop", int(tokens[row])) if stopped[row] else ("length", None)
            self._finished.append(Finish(sequences[row], reason, stop_token))
            state.over.add(sequences[row])

    def _score_prompt(self, layout: Layout, logits: NDArray[np.float32]) -> None:
        """Log-probabilities of the prompt tokens after each row; ``layout`` holds one slice."""
        piece, slot = layout.slices[0], int(layout.slots[0])
        top = int(self._batch.sampling.rows["prompt_logprobs"][slot])
        last = min(piece.end, int(self._batch.prompt[slot]) - 1)
        following = self._batch.tokens[slot, piece.begin + 1 : last + 1]
        if not len(following):
            return
        scored = self._sampler.score(logits[: len(following)], following, top)
        for position, entry in enumerate(scored, start=piece.begin + 1):
            self._prompt_logprobs.append((piece.sequence, position, entry))
