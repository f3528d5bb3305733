"""kv8: int8 with one float32 scale for each token, head, and key or value (``formats.activations.int8_row``)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.formats import activations
from kvern.formats.kv_format import KvFormat


def quantise(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """float32 [..., head_dim] -> codes int8 [..., head_dim], scales float32 [...]."""
    return activations.int8_row(vectors)


def stored(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    codes, scales = quantise(vectors)
    return codes.astype(np.float32) * scales[..., None]


FORMAT = KvFormat("kv8", item_bytes=1, vector_overhead=4, stored=stored)
