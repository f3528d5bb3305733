"""Q4_0: 32 columns in 18 bytes: half float d, 16 bytes of nibbles. Weight = d * (code - 8)."""

from __future__ import annotations

import numpy as np

from kvern.formats.blocks import (
    Bytes,
    Floats,
    half,
    half_bytes,
    in_blocks,
    nearest,
    nibbles,
    pack_nibbles,
    symmetric_step,
)
from kvern.formats.weight_format import WeightFormat


def decode(data: Bytes, columns: int) -> Floats:
    block = in_blocks(data, 18)
    codes = nibbles(block[:, 2:]).astype(np.int8) - np.int8(8)
    return half(block, 0) * codes.astype(np.float32)


def encode(values: Floats) -> Bytes:
    block = values.reshape(-1, 32)
    d = half_bytes(symmetric_step(block, 8))
    codes = nearest(block, half(d, 0), -8, 7) + 8
    return np.concatenate([d, pack_nibbles(codes.astype(np.uint8))], axis=1)


FORMAT = WeightFormat("Q4_0", 32, 18, ("int8 group 32", "float32"), decode, encode)
