"""How inputs of a matrix product are brought to int8: the reference of docs/architecture.md, "Numerics".

Scale = max|x| / 127 in float32; code = x * (127 / max|x|) rounded to nearest even, within +-127. A group that holds
a value that is not finite gets a NaN scale and zero codes, so that what is computed from it is NaN, not a plausible
number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GROUP = 32


def int8_row(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """float32 [..., K] -> codes int8 [..., K] and one scale for each row, float32 [...]."""
    top = np.abs(x).max(axis=-1)
    finite = np.isfinite(x).all(axis=-1)
    top = np.where(finite, top, np.float32(np.nan)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        codes = np.rint(x * (np.float32(127) / top)[..., None])
    codes = np.where((top > 0)[..., None], codes.clip(-127, 127), 0)
    return np.nan_to_num(codes, nan=0.0).astype(np.int8), np.divide(top, 127, dtype=np.float32)


def int8_group_32(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """float32 [..., K], K a multiple of 32 -> codes int8 [..., K], a scale for each group, float32 [..., K / 32]."""
    codes, scales = int8_row(x.reshape(*x.shape[:-1], -1, GROUP))
    return codes.reshape(x.shape), scales
