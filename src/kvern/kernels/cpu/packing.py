"""Weights of a file to the packed form of the native kernels."""

from __future__ import annotations

import numpy as np

from kvern import _native
from kvern.kernels.ops import Weight


def pack(weight: Weight, pool: _native.Pool) -> _native.PackedWeight:
    """Pack a whole matrix and let go of the file's pages. Raises ModelFileError for damaged rows."""
    if weight.format.upper() == "W8A8":
        # The rows it was made from, where there are any: coding a decoded row again could move its scale by a bit.
        source = weight if weight.converted is None else weight.converted
        packed = _native.PackedWeight.from_float("w8a8", source.decode(0, weight.n), pool)
    elif weight.converted is None:
        raw = np.ascontiguousarray(weight.raw)
        packed = _native.PackedWeight.from_blocks(weight.format, raw, weight.n, weight.k, weight.rows, pool)
    else:
        raw = np.ascontiguousarray(weight.rows_raw(0, weight.n))
        packed = _native.PackedWeight.from_blocks(weight.format, raw, weight.n, weight.k, None, pool)
    weight.let_go()
    return packed
