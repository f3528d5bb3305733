"""Rounding to Q4_0."""

from __future__ import annotations

import numpy as np

from kvern.formats.blocks import half_bytes, pack_nibbles
from kvern.quantise.grid import Bytes, Codes, Floats, GridFormat
from kvern.quantise.grids.half_scaled import HalfScaled


def pack(codes: Codes, scales: Floats) -> Bytes:
    return np.concatenate([half_bytes(scales), pack_nibbles(codes)], axis=1)


GRID: GridFormat = HalfScaled("Q4_0", 15, 8, 32, pack, one_sided=True)
