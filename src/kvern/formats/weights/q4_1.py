"""Q4_1: 32 columns in 20 bytes: half floats d and m, 16 bytes of nibbles. Weight = d * code + m."""

from __future__ import annotations

import numpy as np

from kvern.formats.blocks import (
    Bytes,
    Floats,
    asymmetric_step,
    half,
    half_bytes,
    in_blocks,
    nearest,
    nibbles,
    pack_nibbles,
)
from kvern.formats.weight_format import WeightFormat


def decode(data: Bytes, columns: int) -> Floats:
    block = in_blocks(data, 20)
    return half(block, 0) * nibbles(block[:, 4:]).astype(np.float32) + half(block, 2)


def encode(values: Floats) -> Bytes:
    block = values.reshape(-1, 32)
    step, minimum = asymmetric_step(block, 15)
    d, m = half_bytes(step), half_bytes(minimum)
    codes = nearest(block - half(m, 0), half(d, 0), 0, 15)
    return np.concatenate([d, m, pack_nibbles(codes.astype(np.uint8))], axis=1)


FORMAT = WeightFormat("Q4_1", 32, 20, ("int8 group 32", "float32"), decode, encode)
