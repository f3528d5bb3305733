"""Q4_K: 256 columns in 144 bytes: the header of ``kvern.formats.k_blocks``, 128 bytes of nibbles.

Each 32 bytes of nibbles hold two groups: one in the low halves, the next in the high halves.
"""

from __future__ import annotations

import numpy as np

from kvern.formats import k_blocks
from kvern.formats.blocks import Bytes, Floats, in_blocks
from kvern.formats.weight_format import WeightFormat


def decode(data: Bytes, columns: int) -> Floats:
    block = in_blocks(data, 144)
    packed = block[:, 16:].reshape(-1, 4, 32)
    codes = np.stack([packed & 15, packed >> 4], axis=2).reshape(-1, 8, 32)
    return k_blocks.decode(block, codes)


def encode(values: Floats) -> Bytes:
    header, codes = k_blocks.encode(values, 15)
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    return np.concatenate([header, packed.reshape(-1, 128)], axis=1)


FORMAT = WeightFormat("Q4_K", 256, 144, ("int8 group 32", "float32"), decode, encode)
