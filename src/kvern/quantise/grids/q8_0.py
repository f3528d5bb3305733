"""Rounding to Q8_0."""

from __future__ import annotations

import numpy as np

from kvern.formats.blocks import half_bytes
from kvern.quantise.grid import Bytes, Codes, Floats, GridFormat
from kvern.quantise.grids.half_scaled import HalfScaled

ZERO = 127


def pack(codes: Codes, scales: Floats) -> Bytes:
    signed = (codes.astype(np.int16) - ZERO).astype(np.int8)
    return np.concatenate([half_bytes(scales), signed.view(np.uint8)], axis=1)


GRID: GridFormat = HalfScaled("Q8_0", 2 * ZERO, ZERO, 32, pack)
