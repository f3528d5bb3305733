"""A model on the NumPy back end: `kvern.runtime.device.Device` in one readable file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvern.kernels.ops import Network
from kvern.kernels.reference.evaluate import DecodedWeights, ReferenceOps, Segment
from kvern.kernels.reference.pages import Pages
from kvern.kernels.sampling import likeliest
from kvern.runtime.device import StepBatch, StepResult

Rows = NDArray[np.float32]


class ReferenceDevice:
    """``activations``: see ``DecodedWeights``. Raises ConfigError for an unknown KV format."""

    def __init__(self, network: Network, kv_format: str, pages: int, activations: str = "exact") -> None:
        self._network = network
        self._decoded = DecodedWeights(activations)
        self._pages = Pages(network.attention, kv_format, pages)

    @property
    def units(self) -> int:
        return 2 * len(self._network.attention)

    @property
    def vocab_size(self) -> int:
        return self._network.vocab_size

    @property
    def hidden_size(self) -> int:
        return self._network.hidden_size

    @property
    def page_bytes(self) -> int:
        return self._pages.page_bytes

    @property
    def pages(self) -> int:
        return self._pages.count

    @property
    def tail_slots(self) -> int:
        """None needed: its pages hold the newest tokens of every format."""
        return 0

    def step(self, batch: StepBatch) -> StepResult:
        """One step; see docs/architecture.md, "The device of a model"."""
        reached = batch.unit_begin.copy()
        x = batch.hidden.copy()
        begun = np.flatnonzero(batch.unit_begin == 0)
        if begun.size and not batch.stop[0]:
            rows, ops = self._ops(batch, begun)
            x[rows] = self._network.embed(ops)
        for unit in range(self.units):
            if batch.stop[0]:
                break
            active = np.flatnonzero((batch.unit_begin <= unit) & (unit < batch.unit_end))
            if active.size:
                rows, ops = self._ops(batch, active)
                x[rows] = self._network.unit(ops, unit, x[rows])
                reached[active] = unit + 1
        self._park(batch, x, reached)
        logits = self._logits(batch, batch.logit_rows, x, reached)
        greedy = likeliest(self._logits(batch, batch.greedy_rows, x, reached))
        ends = np.searchsorted(batch.row_begin, batch.greedy_rows, side="right") - 1
        greedy[reached[ends] != self.units] = -1
        return StepResult(logits=logits, reached=reached, greedy=greedy)

    def _ops(
        self, batch: StepBatch, slices: Sequence[int] | NDArray[np.intp]
    ) -> tuple[NDArray[np.intp], ReferenceOps]:
        """The rows of some slices, and ops over them."""
        spans = [(int(batch.row_begin[s]), int(batch.row_begin[s + 1])) for s in slices]
        rows = np.concatenate([np.arange(begin, end) for begin, end in spans])
        return rows, self._ops_of(batch, slices, rows, [end - begin for begin, end in spans])

    def _ops_of(
        self, batch: StepBatch, slices: Sequence[int] | NDArray[np.intp], rows: NDArray[np.intp], counts: list[int]
    ) -> ReferenceOps:
        ends = np.cumsum(counts)
        segments = tuple(
            Segment(int(end) - count, int(end), batch.block_table[s])
            for s, count, end in zip(slices, counts, ends, strict=True)
            if count
        )
        return ReferenceOps(batch.tokens[rows], batch.positions[rows], segments, self._decoded, self._pages)

    def _park(self, batch: StepBatch, x: Rows, reached: NDArray[np.int32]) -> None:
        """Rows of slices that moved but did not come through leave in ``batch.hidden``."""
        for s in np.flatnonzero((reached > batch.unit_begin) & (reached < self.units)):
            rows = slice(batch.row_begin[s], batch.row_begin[s + 1])
            batch.hidden[rows] = x[rows]

    def _logits(self, batch: StepBatch, at: NDArray[np.int32], x: Rows, reached: NDArray[np.int32]) -> Rows:
        """float32 [len(at), V] of rows ``at``; zeros for rows whose slice did not come through."""
        logits = np.zeros((at.size, self.vocab_size), np.float32)
        owner = np.searchsorted(batch.row_begin, at, side="right") - 1
        for s in np.unique(owner):
            if reached[s] == self.units:
                wanted = np.flatnonzero(owner == s)
                rows = at[wanted].astype(np.intp)
                ops = self._ops_of(batch, [int(s)], rows, [rows.size])
                logits[wanted] = self._network.head(ops, x[rows])
        return logits

    def adopt_thread(self) -> None:
        """NumPy has threads of its own."""

    def copy_page(self, source: int, target: int) -> None:
        self._pages.copy(source, target)

    def resident_bytes(self) -> int:
        return self._decoded.resident_bytes() + self._pages.resident_bytes()
