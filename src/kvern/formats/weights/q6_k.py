"""Q6_K: 256 columns in 210 bytes: 128 of low nibbles, 64 of high bit pairs, 16 signed scales, half float d.

Groups of 16 columns; weight = d * scale * (code - 32). Each half block of 128 columns uses 64 nibble bytes and 32
bytes of bit pairs: columns 0..31 and 32..63 are the low nibbles, 64..95 and 96..127 the high nibbles of the same
bytes; bits 2 j and 2 j + 1 of pair byte i belong to column 32 j + i.
"""

from __future__ import annotations

import numpy as np

from kvern.formats.blocks import Bytes, Floats, half, half_bytes, in_blocks, nearest, symmetric_step
from kvern.formats.weight_format import WeightFormat

_PAIR = np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]


def decode(data: Bytes, columns: int) -> Floats:
    block = in_blocks(data, 210)
    nibble_bytes = block[:, :128].reshape(-1, 2, 2, 32)
    low = np.concatenate([nibble_bytes & 15, nibble_bytes >> 4], axis=2)
    high = block[:, 128:192].reshape(-1, 2, 1, 32) >> _PAIR & 3
    codes = (low | high << 4).view(np.int8).reshape(-1, 16, 16) - np.int8(32)
    scales = np.ascontiguousarray(block[:, 192:208]).view(np.int8).astype(np.float32)
    step = half(block, 208) * scales
    values: Floats = step[:, :, None] * codes.astype(np.float32)
    return values.reshape(-1, 256)


def encode(values: Floats) -> Bytes:
    groups = values.reshape(-1, 16, 16)
    steps = symmetric_step(groups.reshape(-1, 16), 32).reshape(-1, 16)
    d = half_bytes(symmetric_step(steps, 128))
    unit = half(d, 0)
    scales = nearest(steps, unit, -128, 127)
    signed = nearest(groups, (unit * scales)[:, :, None], -32, 31) + 32
    codes = signed.astype(np.uint8).reshape(-1, 2, 4, 32)
    nibble_bytes = codes[:, :, :2] & 15 | (codes[:, :, 2:] & 15) << 4
    pairs = np.bitwise_or.reduce((codes >> 4) << _PAIR, axis=2)
    parts = [nibble_bytes.reshape(-1, 128), pairs.reshape(-1, 64), scales.astype(np.int8).view(np.uint8), d]
    return np.concatenate(parts, axis=1)


FORMAT = WeightFormat("Q6_K", 256, 210, ("int8 group 32", "float32"), decode, encode)
