"""Rounding to Q4_1: groups of 32, step and low as half floats."""

from __future__ import annotations

import numpy as np

from kvern.formats.blocks import half_bytes, pack_nibbles
from kvern.quantise.grid import Bytes, Codes, Floats, GridFormat


class Blocks:
    name = "Q4_1"
    levels = 15

    def group(self, columns: int) -> int:
        return 32

    def row_parameters(self, weights: Floats) -> Floats:
        return np.empty((weights.shape[0], 0), np.float32)

    def parameters(self, low: Floats, high: Floats, rows: Floats) -> tuple[Floats, Floats]:
        step = (high - low) / np.float32(self.levels)
        return step.astype(np.float16).astype(np.float32), low.astype(np.float16).astype(np.float32)

    def pack(self, codes: Codes, steps: Floats, lows: Floats, rows: Floats) -> Bytes:
        step, low = (half_bytes(np.ascontiguousarray(found).reshape(-1, 1)) for found in (steps, lows))
        packed = np.concatenate([step, low, pack_nibbles(codes.reshape(-1, 32))], axis=1)
        return packed.reshape(codes.shape[0], -1)


GRID: GridFormat = Blocks()
