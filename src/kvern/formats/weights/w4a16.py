"""W4A16: 64 columns in 34 bytes: half float d, 32 bytes of nibbles. Weight = d * (code - 8).

kvern's own format of the MARLIN kind (Frantar et al. 2024): 4-bit weights for inputs that are not quantised. Byte i
of a group holds column i in its low and column i + 32 in its high nibble.
"""

from __future__ import annotations

import numpy as np

from kvern.formats.blocks import Bytes, Floats, half, half_bytes, in_blocks, nearest, symmetric_step
from kvern.formats.weight_format import WeightFormat

GROUP = 64
GROUP_BYTES = 2 + GROUP // 2


def decode(data: Bytes, columns: int) -> Floats:
    group = in_blocks(data, GROUP_BYTES)
    packed = group[:, 2:]
    codes = np.concatenate([packed & 15, packed >> 4], axis=1).view(np.int8) - np.int8(8)
    return half(group, 0) * codes.astype(np.float32)


def encode(values: Floats) -> Bytes:
    group = values.reshape(-1, GROUP)
    d = half_bytes(symmetric_step(group, 8))
    codes = (nearest(group, half(d, 0), -8, 7) + 8).astype(np.uint8)
    return np.concatenate([d, codes[:, : GROUP // 2] | codes[:, GROUP // 2 :] << np.uint8(4)], axis=1)


FORMAT = WeightFormat("W4A16", GROUP, GROUP_BYTES, ("float32", "bf16"), decode, encode)
