"""Q5_K: 256 columns in 176 bytes: the header of ``kvern.formats.k_blocks``, 32 bytes of fifth bits, 128 of nibbles.

Bit g of fifth-bit byte i belongs to column i of group g; nibbles lie as in Q4_K.
"""

from __future__ import annotations

import numpy as np

from kvern.formats import k_blocks
from kvern.formats.blocks import Bytes, Floats, in_blocks
from kvern.formats.weight_format import WeightFormat

_GROUP = np.arange(8, dtype=np.uint8)[None, :, None]


def decode(data: Bytes, columns: int) -> Floats:
    block = in_blocks(data, 176)
    packed = block[:, 48:].reshape(-1, 4, 32)
    low = np.stack([packed & 15, packed >> 4], axis=2).reshape(-1, 8, 32)
    high = block[:, None, 16:48] >> _GROUP & 1
    return k_blocks.decode(block, low | high << 4)


def encode(values: Floats) -> Bytes:
    header, codes = k_blocks.encode(values, 31)
    high = np.bitwise_or.reduce((codes >> 4) << _GROUP, axis=1)
    low = codes & 15
    packed = low[:, 0::2] | low[:, 1::2] << 4
    return np.concatenate([header, high, packed.reshape(-1, 128)], axis=1)


FORMAT = WeightFormat("Q5_K", 256, 176, ("int8 group 32", "float32"), decode, encode)
