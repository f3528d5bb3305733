"""Inputs permuted as the weight's header says, then int4 (within +-7) or int8 by groups of 64 (COMET's FMPQ)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.formats import group_codes, mixed_header
from kvern.formats.activation_format import ActivationFormat


def rounded(x: NDArray[np.float32], header: NDArray[np.uint8]) -> NDArray[np.float32]:
    columns, wide = mixed_header.parse(x.shape[1], header)
    seen = np.empty_like(x)
    tops = np.where(wide, mixed_header.WIDE, mixed_header.NARROW)
    seen[:, columns] = group_codes.rounded(np.ascontiguousarray(x[:, columns]), tops)
    return seen


FORMAT = ActivationFormat("mixed 4/8", 4, rounded, uses_header=True)
