"""Q5_0: 32 columns in 22 bytes: half float d, 4 bytes of fifth bits, 16 of nibbles. Weight = d * (code - 16)."""

from __future__ import annotations

import numpy as np

from kvern.formats.blocks import (
    Bytes,
    Floats,
    fifth_bits,
    half,
    half_bytes,
    in_blocks,
    nearest,
    nibbles,
    pack_fifth_bits,
    pack_nibbles,
    symmetric_step,
)
from kvern.formats.weight_format import WeightFormat


def decode(data: Bytes, columns: int) -> Floats:
    block = in_blocks(data, 22)
    codes = (nibbles(block[:, 6:]) | fifth_bits(block[:, 2:6]) << 4).astype(np.int8) - np.int8(16)
    return half(block, 0) * codes.astype(np.float32)


def encode(values: Floats) -> Bytes:
    block = values.reshape(-1, 32)
    d = half_bytes(symmetric_step(block, 16))
    codes = (nearest(block, half(d, 0), -16, 15) + 16).astype(np.uint8)
    return np.concatenate([d, pack_fifth_bits(codes), pack_nibbles(codes & np.uint8(15))], axis=1)


FORMAT = WeightFormat("Q5_0", 32, 22, ("int8 group 32", "float32"), decode, encode)
