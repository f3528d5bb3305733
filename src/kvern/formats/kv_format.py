"""What a KV format says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class KvFormat:
    """How one token's key (or value) of one head is kept. ``stored`` is what reading gives back after a write:
    float32 [..., head_dim] -> float32 of the same shape, each vector along the last axis on its own."""

    name: str
    item_bytes: int
    vector_overhead: int  # bytes of a vector beside its items
    stored: Callable[[NDArray[np.float32]], NDArray[np.float32]]

    def bytes_per_token(self, kv_heads: int, head_dim: int) -> int:
        """Bytes of the keys and values of one token in one layer, without the padding of any back end."""
        return 2 * kv_heads * (head_dim * self.item_bytes + self.vector_overhead)
