"""Rounding to W4A4_MIXED: columns in order of their largest inputs, the largest in groups with 8-bit inputs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.formats import group_codes, mixed_header
from kvern.formats.weights.w4a4_mixed import PLANES, ZERO
from kvern.quantise.grid import Bytes, Codes, Floats, GridFormat
from kvern.quantise.grids.half_scaled import HalfScaled

FORMAT = "W4A4_MIXED"
_WIDE_SHARE = 8  # one group in so many keeps 8-bit inputs, and at least one


def pack(codes: Codes, scales: Floats) -> Bytes:
    return group_codes.pack_rows(codes, scales, PLANES)


def header_for(largest: NDArray[np.float32]) -> tuple[Bytes, NDArray[np.int64]]:
    """The header for inputs of which the ``largest`` magnitudes [K] are known, and its order of columns."""
    groups = largest.size // group_codes.GROUP
    header = mixed_header.calibrated_header(largest, max(1, round(groups / _WIDE_SHARE)))
    return header, mixed_header.parse(largest.size, header)[0]


GRID: GridFormat = HalfScaled(FORMAT, 15, ZERO, group_codes.GROUP, pack, one_sided=True)
