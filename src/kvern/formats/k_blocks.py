"""The shared shape of Q4_K and Q5_K: 256 columns in 8 groups of 32, each with a 6-bit scale and a 6-bit minimum.

A block begins with two half floats (unit of the scales, unit of the minimums) and 12 bytes of packed 6-bit pairs.
Weight = d * scale * code - dmin * minimum.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.formats.blocks import Bytes, Floats, half, half_bytes, nearest

GROUPS = 8
HEADER_BYTES = 16


def unpack_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """uint8 [blocks, 12] -> scales and minimums, uint8 [blocks, 8] each, values 0..63."""
    low, middle, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)], axis=1)
    minimums = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)], axis=1)
    return scales, minimums


def pack_pairs(scales: Bytes, minimums: Bytes) -> Bytes:
    """The inverse of ``unpack_pairs``."""
    low = scales[:, :4] | scales[:, 4:] >> 4 << 6
    middle = minimums[:, :4] | minimums[:, 4:] >> 4 << 6
    high = (scales[:, 4:] & 15) | (minimums[:, 4:] & 15) << 4
    return np.concatenate([low, middle, high], axis=1)


def decode(block: Bytes, codes: Bytes) -> Floats:
    """Blocks and their codes [blocks, 8, 32] -> float32 [blocks, 256]."""
    scales, minimums = unpack_pairs(block[:, 4:16])
    step = half(block, 0) * scales.astype(np.float32)
    minimum = half(block, 2) * minimums.astype(np.float32)
    values = step[:, :, None] * codes.astype(np.float32) - minimum[:, :, None]
    return values.reshape(-1, 32 * GROUPS)


def encode(values: Floats, levels: int) -> tuple[Bytes, NDArray[np.uint8]]:
    """float32 [rows, columns] -> headers uint8 [blocks, 16] and codes uint8 [blocks, 8, 32] in ``0..levels``."""
    groups = values.reshape(-1, GROUPS, 32)
    low = np.minimum(groups.min(axis=2), 0)
    steps = (groups.max(axis=2).clip(min=0) - low) / np.float32(levels)
    d, dmin = half_bytes(steps.max(axis=1, keepdims=True) / 63), half_bytes((-low).max(axis=1, keepdims=True) / 63)
    unit, minimum_unit = half(d, 0), half(dmin, 0)
    scales = nearest(steps, unit, 0, 63).astype(np.uint8)
    minimums = nearest(-low, minimum_unit, 0, 63).astype(np.uint8)
    step = (unit * scales)[:, :, None]
    codes = nearest(groups + (minimum_unit * minimums)[:, :, None], step, 0, levels).astype(np.uint8)
    return np.concatenate([d, dmin, pack_pairs(scales, minimums)], axis=1), codes
