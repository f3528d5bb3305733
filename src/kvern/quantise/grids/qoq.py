"""Rounding to QoQ: 4-bit codes on a grid of whole numbers of level 1, groups of 64."""

from __future__ import annotations

import numpy as np

from kvern.formats.weights import qoq
from kvern.quantise.grid import Bytes, Codes, Floats, GridFormat

# With the next step, one of the codes 0 and 15 would rebuild a value that does not fit in a signed byte.
_WIDEST = 15


class TwoLevels:
    name = "QOQ"
    levels = qoq.LEVELS

    def group(self, columns: int) -> int:
        return qoq.GROUP

    def row_parameters(self, weights: Floats) -> Floats:
        return qoq.row_scales(weights)[:, None]

    def parameters(self, low: Floats, high: Floats, rows: Floats) -> tuple[Floats, Floats]:
        s1 = rows[:, 0]
        divisor = np.where(s1 > 0, s1, np.float32(np.inf))
        low8, high8 = (np.clip(end / divisor, -qoq.LEVEL_1, qoq.LEVEL_1).astype(np.float32) for end in (low, high))
        s2, z = qoq.group_parameters(low8, high8)
        s2 = np.minimum(s2, np.float32(_WIDEST))
        most = np.floor(np.float32(qoq.LARGEST) / s2)
        z = np.clip(z, np.maximum(qoq.LEVELS - most, 0), np.minimum(most, qoq.LEVELS))
        return s1 * s2, -s1 * (z * s2)

    def pack(self, codes: Codes, steps: Floats, lows: Floats, rows: Floats) -> Bytes:
        divisor = np.where(rows > 0, rows, np.float32(np.inf))
        s2 = np.maximum(np.rint(steps / divisor), 1).astype(np.uint8)
        zeros = np.rint(-lows / divisor).astype(np.uint8)
        return qoq.pack(codes, s2, zeros, rows[:, 0])


GRID: GridFormat = TwoLevels()
