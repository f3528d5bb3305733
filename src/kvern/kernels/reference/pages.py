"""Keys and values in pages of 64 tokens, as numbers that went through the KV format."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvern.formats import kv as kv_formats
from kvern.formats.kv import bf16
from kvern.formats.kv_format import TAIL_PAGES, Coding
from kvern.kernels.ops import AttentionSpec
from kvern.runtime.device import PAGE_TOKENS


class Pages:
    """``keys[layer]`` and ``values[layer]`` are float32 [pages, 64, kv_heads, head_dim].

    Of a format with a tail they hold bf16 numbers, and reading makes of them what a row in a given page sees: the
    definition itself, so nothing that ran before can matter.
    """

    def __init__(self, attention: Sequence[AttentionSpec], kv_format: str, pages: int) -> None:
        self.count = pages
        self._format = kv_formats.get(kv_format)
        shapes = [(pages, PAGE_TOKENS, layer.kv_heads, layer.head_dim) for layer in attention]
        self.keys = [np.zeros(shape, np.float32) for shape in shapes]
        self.values = [np.zeros(shape, np.float32) for shape in shapes]
        per_token = sum(self._format.bytes_per_token(layer.kv_heads, layer.head_dim) for layer in attention)
        self.page_bytes = PAGE_TOKENS * per_token

    @property
    def by_row_page(self) -> bool:
        """Rows in different pages see different numbers."""
        return self._format.tail

    def append(
        self,
        layer: int,
        table: NDArray[np.int32],
        positions: NDArray[np.int32],
        keys: NDArray[np.float32],
        values: NDArray[np.float32],
    ) -> None:
        """Write rows [R, kv_heads, head_dim] at ``positions`` of the sequence whose pages are ``table``."""
        pages, slots = table[positions // PAGE_TOKENS], positions % PAGE_TOKENS
        tail = self._format.tail
        self.keys[layer][pages, slots] = bf16.stored(keys) if tail else self._format.keys.stored(keys)
        self.values[layer][pages, slots] = bf16.stored(values) if tail else self._format.values.stored(values)

    def read(
        self, layer: int, table: NDArray[np.int32], tokens: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values of positions ``0 .. tokens - 1`` as the row at the last of them sees them: float32
        [tokens, kv_heads, head_dim] each."""
        pages = table[: -(-tokens // PAGE_TOKENS)]
        sealed = max(0, pages.size - TAIL_PAGES) if self._format.tail else 0

        def gather(stored: NDArray[np.float32], coding: Coding) -> NDArray[np.float32]:
            found = stored[pages]
            if sealed:
                found[:sealed] = coding.stored(found[:sealed])
            return found.reshape(-1, *stored.shape[2:])[:tokens]

        return gather(self.keys[layer], self._format.keys), gather(self.values[layer], self._format.values)

    def copy(self, source: int, target: int) -> None:
        for stored in (*self.keys, *self.values):
            stored[target] = stored[source]

    def resident_bytes(self) -> int:
        return sum(stored.nbytes for stored in (*self.keys, *self.values))
