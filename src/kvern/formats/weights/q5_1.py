"""Q5_1: 32 columns in 24 bytes: half floats d and m, 4 bytes of fifth bits, 16 of nibbles. Weight = d * code + m."""

from __future__ import annotations

import numpy as np

from kvern.formats.blocks import (
    Bytes,
    Floats,
    asymmetric_step,
    fifth_bits,
    half,
    half_bytes,
    in_blocks,
    nearest,
    nibbles,
    pack_fifth_bits,
    pack_nibbles,
)
from kvern.formats.weight_format import WeightFormat


def decode(data: Bytes, columns: int) -> Floats:
    block = in_blocks(data, 24)
    codes = nibbles(block[:, 8:]) | fifth_bits(block[:, 4:8]) << 4
    return half(block, 0) * codes.astype(np.float32) + half(block, 2)


def encode(values: Floats) -> Bytes:
    block = values.reshape(-1, 32)
    step, minimum = asymmetric_step(block, 31)
    d, m = half_bytes(step), half_bytes(minimum)
    codes = nearest(block - half(m, 0), half(d, 0), 0, 31).astype(np.uint8)
    return np.concatenate([d, m, pack_fifth_bits(codes), pack_nibbles(codes & np.uint8(15))], axis=1)


FORMAT = WeightFormat("Q5_1", 32, 24, ("int8 group 32", "float32"), decode, encode)
