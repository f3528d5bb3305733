"""What a KV format says of itself: a coding of keys, a coding of values, and whether recent tokens stay bf16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

PAGE_TOKENS = 64
TAIL_PAGES = 2  # of a format with a tail: the page that a sequence is in, and the one before it
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Coding:
    """How the keys, or the values, of one KV head are kept.

    ``stored`` is what reading gives back after a write. Most codings round each vector on its own: float32
    [..., head_dim] -> the same shape. ``by_page`` ones round whole pages: float32 [..., 64, heads, head_dim] ->
    the same shape; only a full page can be coded, so their formats keep recent tokens in a tail.
    """

    name: str
    bits: int  # of an item
    stored: Callable[[Vectors], Vectors]
    vector_bytes: int = 0  # beside the items, for each token's vector
    channel_bytes: int = 0  # beside the items, for each channel of a page
    by_page: bool = False

    def page_bytes(self, head_dim: int) -> int:
        """Bytes of one head's vectors in one page, without the padding of any back end."""
        items = PAGE_TOKENS * head_dim * self.bits // 8
        return items + PAGE_TOKENS * self.vector_bytes + head_dim * self.channel_bytes


@dataclass(frozen=True, slots=True)
class KvFormat:
    """Keys and values of one token, layer by layer.

    With a ``tail``, a row at position p reads page j in its coding when j <= p // 64 - 2, and in bf16 otherwise:
    by its position alone, whatever ran before (docs/kv-formats.md). ``share`` says whether pages may serve several
    sequences: "never" where a sequence could not go on from pages alone.
    """

    name: str
    keys: Coding
    values: Coding
    tail: bool = False

    @property
    def share(self) -> Literal["always", "never"]:
        return "never" if self.tail else "always"

    @property
    def share_reason(self) -> str:
        """Why pages are not shared; empty when they are."""
        if self.share == "always":
            return ""
        return f"KV format {self.name} keeps each sequence's newest tokens outside the pages, so pages are not shared"

    def bytes_per_token(self, kv_heads: int, head_dim: int) -> int:
        """Bytes of the keys and values of one token in one layer, without the padding of any back end."""
        page = kv_heads * (self.keys.page_bytes(head_dim) + self.values.page_bytes(head_dim))
        return -(-page // PAGE_TOKENS)

    def tail_bytes(self, kv_heads: int, head_dim: int) -> int:
        """Bytes of one sequence's tail in one layer; 0 without a tail."""
        return 2 * 2 * TAIL_PAGES * PAGE_TOKENS * kv_heads * head_dim if self.tail else 0
