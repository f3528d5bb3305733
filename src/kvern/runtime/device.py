"""What the device wing offers: a model resident on a back end, stepped batch by batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

PAGE_TOKENS = 64


@dataclass(slots=True)
class StepBatch:
    """One step over R rows of S slices; E rows want logits. See docs/architecture.md, "The device of a model"."""

    tokens: NDArray[np.int32]  # [R] input token of each row
    positions: NDArray[np.int32]  # [R] its position in the sequence
    row_begin: NDArray[np.int32]  # [S + 1]
    unit_begin: NDArray[np.int32]  # [S]
    unit_end: NDArray[np.int32]  # [S]
    block_table: NDArray[np.int32]  # [S, P] page ids; entries past a slice's last token are not read
    hidden: NDArray[np.float32]  # [R, H] in: rows of continued spans; out: rows of slices that end early
    logit_rows: NDArray[np.int32]  # [E] ascending
    stop: NDArray[np.uint8]  # [1] set by another thread to stop at the next unit boundary


@dataclass(slots=True)
class StepResult:
    """``reached[s] == unit_begin[s]`` means the slice was not begun."""

    logits: NDArray[np.float32]  # [E, V]
    reached: NDArray[np.int32]  # [S]


class Device(Protocol):
    """A model with its weights and KV pages on one back end."""

    @property
    def units(self) -> int:
        """Sublayers: twice the layers."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def page_bytes(self) -> int:
        """Bytes of one 64-token page over all layers, K and V."""

    @property
    def pages(self) -> int: ...

    def step(self, batch: StepBatch) -> StepResult:
        """Run one step; releases the GIL for its whole length."""

    def copy_page(self, source: int, target: int) -> None: ...

    def resident_bytes(self) -> int:
        """Bytes of weights, KV and scratch this device owns."""
