"""W6 (FlexQ): 64 columns in 50 bytes: half float s, then codes as planes of 4 and 2 bits. Weight = s * (code - 31).

Made for inputs in groups of 64 too: 6 bits for most products, 8 for those found sensitive (FlexQ: the down
projection), which ``Weight.activation`` says; 8 unless told.
"""

from __future__ import annotations

import numpy as np

from kvern.formats import group_codes, layout
from kvern.formats.blocks import Bytes, Floats, half, half_bytes, in_blocks, nearest
from kvern.formats.weight_format import WeightFormat

BITS, ZERO = 6, 31
BLOCK_BYTES = group_codes.block_bytes(BITS)
PLANES = layout.plane_widths(BITS)


def decode(data: Bytes, columns: int) -> Floats:
    codes, scales = group_codes.unpack_rows(in_blocks(data, BLOCK_BYTES), PLANES)
    return scales * (codes - np.int16(ZERO)).astype(np.float32)


def encode(values: Floats) -> Bytes:
    block = values.reshape(-1, group_codes.GROUP)
    scales = half(half_bytes(np.abs(block).max(axis=1, keepdims=True) / np.float32(ZERO)), 0)
    codes = (nearest(block, scales, -ZERO, ZERO) + ZERO).astype(np.uint8)
    return group_codes.pack_rows(codes, scales, PLANES)


FORMAT = WeightFormat(
    "W6", group_codes.GROUP, BLOCK_BYTES, ("int8 group 64", "int6 group 64", "float32"), decode, encode
)
