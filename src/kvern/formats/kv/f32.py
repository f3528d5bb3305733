"""f32 KV: nothing is rounded. For the reference back end only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.formats.kv_format import KvFormat


def stored(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors


FORMAT = KvFormat("f32", item_bytes=4, vector_overhead=0, stored=stored)
