"""BF16: bfloat16, 2 bytes a column, rounded to nearest even."""

from __future__ import annotations

import numpy as np

from kvern.formats import bfloat16
from kvern.formats.blocks import Bytes, Floats
from kvern.formats.weight_format import WeightFormat


def decode(data: Bytes, columns: int) -> Floats:
    return bfloat16.from_bits(data.view("<u2"))


def encode(values: Floats) -> Bytes:
    return bfloat16.to_bits(values).astype("<u2").view(np.uint8)


FORMAT = WeightFormat("BF16", 1, 2, ("float32",), decode, encode)
