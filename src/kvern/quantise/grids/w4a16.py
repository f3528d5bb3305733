"""Rounding to W4A16."""

from __future__ import annotations

import numpy as np

from kvern.formats.blocks import half_bytes
from kvern.formats.weights.w4a16 import GROUP
from kvern.quantise.grid import Bytes, Codes, Floats, GridFormat
from kvern.quantise.grids.half_scaled import HalfScaled


def pack(codes: Codes, scales: Floats) -> Bytes:
    nibbles = codes[:, : GROUP // 2] | codes[:, GROUP // 2 :] << np.uint8(4)
    return np.concatenate([half_bytes(scales), nibbles], axis=1)


GRID: GridFormat = HalfScaled("W4A16", 15, 8, GROUP, pack, one_sided=True)
