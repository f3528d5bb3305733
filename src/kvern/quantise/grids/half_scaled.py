"""Grids of formats whose groups have one half float: symmetric, or reaching one code further on one side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kvern.quantise.grid import Bytes, Codes, Floats

Packer = Callable[[Codes, Floats], Bytes]  # codes uint8 [groups, columns of one], scales float32 [groups, 1] -> bytes


@dataclass(frozen=True, slots=True)
class HalfScaled:
    """Weight = scale * (spacing * code - zero), code 0 .. ``levels``; the scale is a half float of its own for each
    ``columns``. ``one_sided``: there is no code for +zero, so the larger end lands on -zero and the scale may be
    negative (as in Q4_0)."""

    name: str
    levels: int
    zero: int
    columns: int
    packer: Packer
    spacing: int = 1
    one_sided: bool = False

    def group(self, columns: int) -> int:
        return self.columns

    def row_parameters(self, weights: Floats) -> Floats:
        return np.empty((weights.shape[0], 0), np.float32)

    def parameters(self, low: Floats, high: Floats, rows: Floats) -> tuple[Floats, Floats]:
        largest = np.maximum(-low, high)
        signed = np.where(-low >= high, largest, -largest) if self.one_sided else largest
        scale = (signed / np.float32(self.zero)).astype(np.float16).astype(np.float32)
        return scale * self.spacing, scale * -self.zero

    def pack(self, codes: Codes, steps: Floats, lows: Floats, rows: Floats) -> Bytes:
        scales = np.ascontiguousarray(steps / np.float32(self.spacing)).reshape(-1, 1)
        return self.packer(codes.reshape(-1, self.columns), scales).reshape(codes.shape[0], -1)
