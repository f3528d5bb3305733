"""Rounding to W8A8: one step for a whole row, codes -127 .. 127."""

from __future__ import annotations

import numpy as np

from kvern.quantise.grid import Bytes, Codes, Floats, GridFormat

HALF = 127  # the code that stands for 0 while codes are counted from 0


class RowOfBytes:
    name = "W8A8"
    levels = 2 * HALF

    def group(self, columns: int) -> int:
        return columns

    def row_parameters(self, weights: Floats) -> Floats:
        return np.empty((weights.shape[0], 0), np.float32)

    def parameters(self, low: Floats, high: Floats, rows: Floats) -> tuple[Floats, Floats]:
        step = (np.maximum(-low, high) / np.float32(HALF)).astype(np.float32)
        return step, -HALF * step

    def pack(self, codes: Codes, steps: Floats, lows: Floats, rows: Floats) -> Bytes:
        signed = (codes.astype(np.int16) - HALF).astype(np.int8)
        return np.concatenate([signed.view(np.uint8), steps.astype("<f4").view(np.uint8)], axis=1)


GRID: GridFormat = RowOfBytes()
