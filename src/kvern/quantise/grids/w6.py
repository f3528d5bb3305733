"""Rounding to W6."""

from __future__ import annotations

from kvern.formats import group_codes
from kvern.formats.weights.w6 import PLANES, ZERO
from kvern.quantise.grid import Bytes, Codes, Floats, GridFormat
from kvern.quantise.grids.half_scaled import HalfScaled


def pack(codes: Codes, scales: Floats) -> Bytes:
    return group_codes.pack_rows(codes, scales, PLANES)


GRID: GridFormat = HalfScaled("W6", 2 * ZERO, ZERO, group_codes.GROUP, pack)
