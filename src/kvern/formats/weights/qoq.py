"""QoQ: 4-bit codes under two levels of scales (QServe, Lin et al., MLSys 2025, "progressive group quantisation").

A row is 34 bytes for each 64 columns, then its scale ``s1`` as float32. A block holds ``s2`` (uint8), ``z * s2``
(uint8) and 32 bytes of codes ``q``: byte i has column i in its low and column i + 32 in its high half.

    weight = s1 * (q * s2 - z * s2)

The bracket is the weight as int8, so that products with int8 inputs stay whole numbers over all of a row. Encoding:
level 1 brings a row to ``w8 = round(w / s1)`` with ``s1 = max|w| / 119``; level 2 brings 64 of those to
``q = round(w8 / s2) + z``. Rounding to a multiple of ``s2 <= 16`` moves a value by at most 8, so that 119, not 127,
keeps every rebuilt value within +-127 (``LARGEST``).

A block whose codes rebuild values outside +-127, or whose ``q * s2`` does not fit in a byte, cannot have been made
here: its whole row reads as NaN, so that damage shows and no kernel's bytes can wrap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.formats.blocks import Bytes, Floats
from kvern.formats.weight_format import WeightFormat

GROUP = 64
BLOCK_BYTES = 2 + GROUP // 2
SCALE_BYTES = 4
LEVELS = 15  # the largest code
LEVEL_1 = 119  # the largest magnitude of level 1
LARGEST = 127  # of a rebuilt value
SMALLEST_SCALE = np.float32(2.0**-126)  # native code takes smaller numbers for zero


def row_scales(values: Floats) -> Floats:
    """``s1`` of every row: float32 [rows, K] -> float32 [rows]; 0 for a row of (nearly) zeros."""
    scales = (np.abs(values).max(axis=1) / np.float32(LEVEL_1)).astype(np.float32)
    return np.where(scales < SMALLEST_SCALE, np.float32(0), scales)


def group_parameters(low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """``s2`` (1 .. 16) and ``z`` (0 .. 15) of groups of level-1 values between ``low <= 0`` and ``high >= 0``.

    Whole numbers within +-119, or fractions of them where a range was narrowed, as float32 of one shape.
    """
    s2 = np.maximum(np.rint((high - low) / np.float32(LEVELS)), np.float32(1))
    return s2, np.clip(np.rint(-low / s2), 0, LEVELS)


def pack(codes: Bytes, s2: Bytes, zeros: Bytes, s1: Floats) -> Bytes:
    """Rows from codes uint8 [rows, K], ``s2`` and ``z * s2`` uint8 [rows, K / 64], ``s1`` float32 [rows]."""
    rows = codes.shape[0]
    block = codes.reshape(rows, -1, GROUP)
    nibbles = block[..., : GROUP // 2] | block[..., GROUP // 2 :] << np.uint8(4)
    blocks = np.concatenate([s2[..., None], zeros[..., None], nibbles], axis=2).reshape(rows, -1)
    return np.concatenate([blocks, s1.astype("<f4")[:, None].view(np.uint8)], axis=1)


def split(data: Bytes) -> tuple[Bytes, Bytes, Bytes, Floats]:
    """The inverse of ``pack``."""
    rows = data.shape[0]
    block = np.ascontiguousarray(data[:, :-SCALE_BYTES]).reshape(rows, -1, BLOCK_BYTES)
    nibbles = block[..., 2:]
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=2).reshape(rows, -1)
    s1 = np.ascontiguousarray(data[:, -SCALE_BYTES:]).view("<f4")[:, 0].astype(np.float32)
    return codes, block[..., 0], block[..., 1], s1


def rebuilt(codes: Bytes, s2: Bytes, zeros: Bytes) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """``q * s2 - z * s2``, int16 [rows, K], and whether all of a row is as the format allows, bool [rows]."""
    scaled: NDArray[np.int16] = codes.reshape(*s2.shape, GROUP).astype(np.int16) * s2[..., None].astype(np.int16)
    values: NDArray[np.int16] = scaled - zeros[..., None].astype(np.int16)
    fits: NDArray[np.bool_] = (scaled <= 255) & (np.abs(values) <= LARGEST)
    sound: NDArray[np.bool_] = np.all(fits, axis=(1, 2))
    return values.reshape(codes.shape[0], -1), sound


def decode(data: Bytes, columns: int) -> Floats:
    codes, s2, zeros, s1 = split(data)
    values, sound = rebuilt(codes, s2, zeros)
    return np.where(sound, s1, np.float32(np.nan))[:, None] * values.astype(np.float32)


def encode(values: Floats) -> Bytes:
    s1 = row_scales(values)
    level_1 = np.rint(values / np.where(s1 > 0, s1, np.float32(np.inf))[:, None]).clip(-LEVEL_1, LEVEL_1)
    group = level_1.reshape(len(values), -1, GROUP)
    s2, z = group_parameters(np.minimum(group.min(axis=2), 0), np.maximum(group.max(axis=2), 0))
    codes = np.clip(np.rint(group / s2[..., None]) + z[..., None], 0, LEVELS)
    return pack(codes.astype(np.uint8).reshape(values.shape), s2.astype(np.uint8), (z * s2).astype(np.uint8), s1)


FORMAT = WeightFormat("QOQ", GROUP, BLOCK_BYTES, ("int8 row", "float32"), decode, encode, row_overhead=SCALE_BYTES)
