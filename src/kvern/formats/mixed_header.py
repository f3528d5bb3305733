"""The header of a matrix whose inputs are permuted and then brought to 4 or 8 bits by groups of 64 (COMET's FMPQ).

For each position the column that stands there (int32 [K], a permutation), then for each group of 64 positions whether
inputs keep 8 bits (uint8 [K / 64], 0 or 1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.core.errors import ModelFileError
from kvern.formats.group_codes import GROUP

Bytes = NDArray[np.uint8]
Columns = NDArray[np.int64]
NARROW, WIDE = np.float32(7), np.float32(127)  # largest codes


def header_of(columns: Columns, wide: NDArray[np.bool_]) -> Bytes:
    """``columns`` [K] by position, ``wide`` [K / 64]."""
    return np.concatenate([columns.astype("<i4").view(np.uint8), wide.astype(np.uint8)])


def plain_header(columns: int) -> Bytes:
    """No column moves and all groups are narrow: what is known without calibration."""
    return header_of(np.arange(columns), np.zeros(columns // GROUP, np.bool_))


def calibrated_header(channel_maxima: NDArray[np.float32], wide_blocks: int) -> Bytes:
    """Columns in ascending order of ``channel_maxima`` (float32 [K], the largest magnitudes of each input over the
    calibration text), so that outliers meet in the last groups; the last ``wide_blocks`` groups keep 8 bits.

    Raises ValueError for maxima that are not finite, K not a multiple of 64, or more blocks than there are.
    """
    maxima = np.asarray(channel_maxima)
    if maxima.ndim != 1 or maxima.size == 0 or maxima.size % GROUP or not np.isfinite(maxima).all():
        raise ValueError(f"channel_maxima must be finite numbers, a multiple of {GROUP} of them")
    groups = maxima.size // GROUP
    if not 0 <= wide_blocks <= groups:
        raise ValueError(f"wide_blocks must be from 0 to {groups}, not {wide_blocks}")
    return header_of(np.argsort(maxima, kind="stable"), np.arange(groups) >= groups - wide_blocks)


def parse(columns: int, header: Bytes) -> tuple[Columns, NDArray[np.bool_]]:
    """Columns by position and wide groups; raises ModelFileError for a header that is not well formed."""
    expected = 4 * columns + columns // GROUP
    if header.dtype != np.uint8 or header.ndim != 1 or header.size != expected:
        raise ModelFileError(f"W4A4_MIXED: a header of {header.size} bytes, {columns} columns need {expected}")
    order = np.ascontiguousarray(header[: 4 * columns]).view("<i4").astype(np.int64)
    wide = header[4 * columns :]
    if not np.array_equal(np.sort(order), np.arange(columns)):
        raise ModelFileError("W4A4_MIXED: the columns named in the header are not a permutation")
    if wide.max(initial=0) > 1:
        raise ModelFileError("W4A4_MIXED: a group of the header is neither narrow (0) nor wide (1)")
    return order, wide.astype(np.bool_)
