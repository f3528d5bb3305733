"""What the device wing offers: a model resident on a back end, stepped batch by batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

PAGE_TOKENS = 64


def _no_rows() -> NDArray[np.int32]:
    return np.zeros(0, np.int32)


@dataclass(slots=True)
class StepBatch:
    """One step over R rows of S slices; E rows want logits, G others the likeliest token.

    See docs/architecture.md, "The device of a model".
    """

    tokens: NDArray[np.int32]  # [R] input token of each row
    positions: NDArray[np.int32]  # [R] its position in the sequence
    row_begin: NDArray[np.int32]  # [S + 1]
    unit_begin: NDArray[np.int32]  # [S]
    unit_end: NDArray[np.int32]  # [S]
    block_table: NDArray[np.int32]  # [S, P] page ids; entries past a slice's last token are not read
    hidden: NDArray[np.float32]  # [R, H] in: rows of continued spans; out: rows of slices that end early
    logit_rows: NDArray[np.int32]  # [E] ascending
    stop: NDArray[np.uint8]  # [1] set by another thread to stop at the next unit boundary
    # [S] where the device keeps the newest tokens of each slice's sequence; None, or -1: its KV format has no tail
    tail_slot: NDArray[np.int32] | None = None
    # [G] ascending, none of them in logit_rows; a device need not make logits of these
    greedy_rows: NDArray[np.int32] = field(default_factory=_no_rows)
    workers: tuple[int, int] = (0, 0)  # first one and how many run it, of a back end with workers; (0, 0): all


@dataclass(slots=True)
class StepResult:
    """``reached[s] == unit_begin[s]`` means the slice was not begun."""

    logits: NDArray[np.float32]  # [E, V]
    reached: NDArray[np.int32]  # [S]
    # [G] the id of the highest logit, ties to the lowest; -1: logits that are not finite, or a slice not finished
    greedy: NDArray[np.int32] = field(default_factory=_no_rows)


@runtime_checkable
class Resizable(Protocol):
    """A device whose weights may take more or less memory while it serves."""

    def set_weight_budget(self, budget: int | None) -> None:
        """Bytes that all weights may take from the next step on; None: all they can. Raises ConfigError."""


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

    @property
    def tail_slots(self) -> int:
        """Sequences whose newest tokens it can keep outside the pages; 0: its KV format has no tail."""

    def step(self, batch: StepBatch) -> StepResult:
        """Run one step; releases the GIL for its whole length."""

    def adopt_thread(self) -> None:
        """Told on a thread that will run steps from now on: a device that ties its threads to cores ties this one."""

    def copy_page(self, source: int, target: int) -> None: ...

    def resident_bytes(self) -> int:
        """Bytes of weights, KV and scratch this device owns."""
