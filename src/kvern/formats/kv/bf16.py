"""bf16 KV: keys and values rounded to bfloat16, nearest even."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.formats import bfloat16
from kvern.formats.kv_format import KvFormat


def stored(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return bfloat16.from_bits(bfloat16.to_bits(vectors))


FORMAT = KvFormat("bf16", item_bytes=2, vector_overhead=0, stored=stored)
