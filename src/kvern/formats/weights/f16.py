"""F16: half floats, 2 bytes a column."""

from __future__ import annotations

import numpy as np

from kvern.core.errors import ModelFileError
from kvern.formats.blocks import Bytes, Floats
from kvern.formats.weight_format import WeightFormat


def decode(data: Bytes, columns: int) -> Floats:
    return data.view("<f2").astype(np.float32)


def encode(values: Floats) -> Bytes:
    if np.abs(values).max(initial=0) >= 65520:
        raise ModelFileError("F16: a value is too large for a half float")
    return values.astype("<f2").view(np.uint8)


FORMAT = WeightFormat("F16", 1, 2, ("float32",), decode, encode)
