"""F32: float32, 4 bytes a column."""

from __future__ import annotations

import numpy as np

from kvern.formats.blocks import Bytes, Floats
from kvern.formats.weight_format import WeightFormat


def decode(data: Bytes, columns: int) -> Floats:
    return data.view("<f4").astype(np.float32)


def encode(values: Floats) -> Bytes:
    return values.astype("<f4").view(np.uint8)


FORMAT = WeightFormat("F32", 1, 4, ("float32",), decode, encode)
