"""A device of integers: every token depends on all tokens before it, through pages, exactly.

For tests of the executor and of the engine around it, where what is computed matters less than that nothing is lost,
doubled or out of order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from kvern.kernels.sampling import likeliest
from kvern.runtime.device import PAGE_TOKENS, StepBatch, StepResult

PRIME = 4093  # sums of up to 4096 values stay exact in float32


@dataclass
class PageDevice:
    """``on_unit(unit)`` is called before each unit of a step: a test may block, stop or fail there."""

    pages: int = 64
    layers: int = 4
    vocab_size: int = 96
    on_unit: Callable[[int], None] | None = None
    steps: int = 0
    calls: list[tuple[int, int]] = field(default_factory=list)  # (rows, slices) of each step
    hidden_size: int = 2
    tail_slots: int = 0

    def __post_init__(self) -> None:
        self.units = 2 * self.layers
        self.page_bytes = self.layers * PAGE_TOKENS * 8
        self._kv = np.full((self.layers, self.pages, PAGE_TOKENS), -1, np.int64)  # -1: never written
        self._busy = threading.Lock()

    def step(self, batch: StepBatch) -> StepResult:
        assert self._busy.acquire(blocking=False), "two steps at once"
        try:
            return self._step(batch)
        finally:
            self._busy.release()

    def _step(self, batch: StepBatch) -> StepResult:
        self.steps += 1
        slices = len(batch.unit_begin)
        self.calls.append((len(batch.tokens), slices))
        reached = batch.unit_begin.copy()
        hidden = batch.hidden[:, 0].astype(np.int64)
        for index in np.flatnonzero(batch.unit_begin == 0):
            rows = slice(batch.row_begin[index], batch.row_begin[index + 1])
            hidden[rows] = (batch.tokens[rows] * 7 + batch.positions[rows] + 1) % PRIME
        for unit in range(self.units):
            if self.on_unit is not None:
                self.on_unit(unit)
            if batch.stop[0]:
                break
            for index in range(slices):
                if batch.unit_begin[index] <= unit < batch.unit_end[index]:
                    rows = slice(batch.row_begin[index], batch.row_begin[index + 1])
                    hidden[rows] = self._unit(unit, hidden[rows], batch.positions[rows], batch.block_table[index])
                    reached[index] = unit + 1
        batch.hidden[:, 0] = hidden
        through = (reached == self.units)[np.searchsorted(batch.row_begin, batch.greedy_rows, side="right") - 1]
        greedy = np.where(through, likeliest(self._logits(batch, hidden, batch.greedy_rows)), -1).astype(np.int32)
        return StepResult(self._logits(batch, hidden, batch.logit_rows), reached, greedy)

    def _logits(self, batch: StepBatch, hidden: np.ndarray, rows: np.ndarray) -> np.ndarray:
        final = hidden[rows]
        logits = (final[:, None] * 31 + np.arange(self.vocab_size) * (final[:, None] % 89 + 1)) % 97
        return logits.astype(np.float32) / 8

    def _unit(self, unit: int, rows: np.ndarray, positions: np.ndarray, table: np.ndarray) -> np.ndarray:
        if unit % 2:
            return (rows * 3 + unit) % PRIME
        kv = self._kv[unit // 2]
        kv[table[positions // PAGE_TOKENS], positions % PAGE_TOKENS] = (rows * 5 + positions) % PRIME
        out = []
        for row, position in zip(rows, positions, strict=True):
            seen = kv[table[: position // PAGE_TOKENS + 1]].reshape(-1)[: position + 1]
            assert (seen >= 0).all(), "read a position that was never written"
            out.append((row + int(seen.sum())) % PRIME)
        return np.array(out, np.int64)

    def adopt_thread(self) -> None:
        pass

    def copy_page(self, source: int, target: int) -> None:
        self._kv[:, target] = self._kv[:, source]

    def resident_bytes(self) -> int:
        return int(self._kv.nbytes)

    def continuation(self, tokens: list[int], count: int) -> list[int]:
        """Greedy tokens after ``tokens``, computed one whole sequence at a time on a device of its own."""
        alone = PageDevice(
            pages=(len(tokens) + count) // PAGE_TOKENS + 1, layers=self.layers, vocab_size=self.vocab_size
        )
        known = list(tokens)
        for _ in range(count):
            size = len(known)
            batch = StepBatch(
                tokens=np.array(known, np.int32),
                positions=np.arange(size, dtype=np.int32),
                row_begin=np.array([0, size], np.int32),
                unit_begin=np.zeros(1, np.int32),
                unit_end=np.full(1, self.units, np.int32),
                block_table=np.arange(alone.pages, dtype=np.int32)[None],
                hidden=np.zeros((size, self.hidden_size), np.float32),
                logit_rows=np.array([size - 1], np.int32),
                stop=np.zeros(1, np.uint8),
            )
            known.append(int(alone.step(batch).logits[0].argmax()))
        return known[len(tokens) :]
