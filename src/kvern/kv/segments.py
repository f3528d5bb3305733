"""Content and view: sealed runs of pages, and a sequence's KV as a list of their ranges plus one open tail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """Sealed KV of a run of whole pages. Immutable; its pages are counted in the pool.

    ``frame`` names the root whose position frame the keys are rotated in (segments of one prefix chain share it);
    ``first`` is the index of the run's first page in that frame.
    """

    frame: bytes
    first: int
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SegmentRange:
    """Pages ``[begin, end)`` of a segment, counted from its first."""

    segment: Segment
    begin: int
    end: int

    @property
    def pages(self) -> tuple[int, ...]:
        return self.segment.pages[self.begin : self.end]


class KvView:
    """Where one sequence's KV lies: sealed ranges, then tail pages that nobody else reads.

    The tail holds the page being filled and pages granted ahead. ``capacity`` is the tokens all pages hold,
    ``seal_at`` the computed tokens at which the first tail page is full, ``shared`` the tokens found in the cache.
    """

    __slots__ = ("capacity", "digests", "page_tokens", "ranges", "seal_at", "shared", "tail")

    def __init__(self, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self.digests: list[bytes] = []  # of the prefix chain, one per full page of known tokens, made when needed
        self.clear()

    def clear(self) -> None:
        """Hold nothing. The digests stay: they depend on the tokens only."""
        self.ranges: list[SegmentRange] = []
        self.tail: list[int] = []
        self.capacity = 0
        self.seal_at = self.page_tokens
        self.shared = 0

    @property
    def sealed_pages(self) -> int:
        return self.seal_at // self.page_tokens - 1

    @property
    def count(self) -> int:
        """Pages held."""
        return self.capacity // self.page_tokens

    def pages(self) -> list[int]:
        """All pages in order of position: the block table."""
        return [*self._sealed(), *self.tail]

    def _sealed(self) -> Iterator[int]:
        for item in self.ranges:
            yield from item.pages

    def begin_with(self, frame: bytes, pages: tuple[int, ...]) -> None:
        """Start from sealed pages of others."""
        if pages:
            self._append(Segment(frame, 0, pages))
            self.shared = len(pages) * self.page_tokens
            self.capacity = self.shared

    def grow(self, pages: list[int]) -> None:
        """Append own pages at the tail."""
        self.tail += pages
        self.capacity += len(pages) * self.page_tokens

    def seal(self, frame: bytes, count: int) -> tuple[int, ...]:
        """Turn the first ``count`` tail pages into a segment; returns them."""
        pages = tuple(self.tail[:count])
        del self.tail[:count]
        self._append(Segment(frame, self.sealed_pages, pages))
        return pages

    def _append(self, segment: Segment) -> None:
        self.ranges.append(SegmentRange(segment, 0, len(segment.pages)))
        self.seal_at += len(segment.pages) * self.page_tokens
