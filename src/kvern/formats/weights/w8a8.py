"""W8A8: a row of signed bytes, then its float32 scale. Weight = scale * code, codes within +-127.

kvern's own format, made at load; codes and scale follow ``kvern.formats.int8_codes``.
"""

from __future__ import annotations

import numpy as np

from kvern.formats import int8_codes
from kvern.formats.blocks import Bytes, Floats
from kvern.formats.weight_format import WeightFormat

SCALE_BYTES = 4


def split(data: Bytes) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int8]], Floats]:
    """uint8 [rows, row bytes] -> codes int8 [rows, columns], scales float32 [rows, 1]."""
    codes = np.ascontiguousarray(data[:, :-SCALE_BYTES]).view(np.int8)
    return codes, np.ascontiguousarray(data[:, -SCALE_BYTES:]).view("<f4").astype(np.float32)


def decode(data: Bytes, columns: int) -> Floats:
    codes, scales = split(data)
    return scales * codes.astype(np.float32)


def encode(values: Floats) -> Bytes:
    codes, scales = int8_codes.int8_row(values)
    return np.concatenate([codes.view(np.uint8), scales.astype("<f4")[:, None].view(np.uint8)], axis=1)


FORMAT = WeightFormat("W8A8", 1, 1, ("int8 row", "float32"), decode, encode, row_overhead=SCALE_BYTES)
