"""Weights of a file to the packed form of the native kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kvern import _native
from kvern.kernels.ops import Weight

Packer = Callable[[Weight, _native.Pool], _native.PackedWeight]
ROWS = 4096  # brought to another format at a time: their float32 values are some tens of megabytes


def pack(weight: Weight, pool: _native.Pool) -> _native.PackedWeight:
    """Pack a whole matrix and let go of the file's pages. Raises ModelFileError for damaged rows."""
    if weight.format.upper() == "W8A8" and weight.converted is not None:
        # From the rows it was made from: coding a decoded row again could move its scale by a bit.
        packed = _native.PackedWeight.from_float("w8a8", weight.converted.decode(0, weight.n), pool)
    elif weight.converted is None:
        raw = np.ascontiguousarray(weight.raw)
        packed = _native.PackedWeight.from_blocks(
            weight.format, raw, weight.n, weight.k, weight.rows, pool, weight.header
        )
    else:
        raw = np.concatenate(
            [weight.rows_raw(begin, min(begin + ROWS, weight.n)) for begin in range(0, weight.n, ROWS)]
        )
        packed = _native.PackedWeight.from_blocks(weight.format, raw, weight.n, weight.k, None, pool, weight.header)
    weight.let_go()
    return packed
