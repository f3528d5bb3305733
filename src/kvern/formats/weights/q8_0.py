"""Q8_0: 32 columns in 34 bytes: half float d, 32 signed bytes. Weight = d * code."""

from __future__ import annotations

import numpy as np

from kvern.formats.blocks import Bytes, Floats, half, half_bytes, in_blocks, nearest
from kvern.formats.weight_format import WeightFormat


def decode(data: Bytes, columns: int) -> Floats:
    block = in_blocks(data, 34)
    return half(block, 0) * block[:, 2:].view(np.int8).astype(np.float32)


def encode(values: Floats) -> Bytes:
    block = values.reshape(-1, 32)
    d = half_bytes(np.abs(block).max(axis=1, keepdims=True) / np.float32(127))
    codes = nearest(block, half(d, 0), -127, 127)
    return np.concatenate([d, codes.astype(np.int8).view(np.uint8)], axis=1)


FORMAT = WeightFormat("Q8_0", 32, 34, ("int8 group 32", "float32"), decode, encode)
