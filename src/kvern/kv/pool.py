"""Page ids and reference counts. Free, cached and referenced pages always add up to all of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from kvern.core.errors import InvariantBroken


class PagePool:
    """Pages ``0 .. pages - 1``.

    A page is free, referenced by sequences, or *cached*: not referenced, but known to the prefix index. Cached pages
    are the reserve: the one released longest ago is forgotten first, unless it is pinned. A sequence releases its
    pages from the last to the first, so a chain loses its end before its beginning.
    """

    def __init__(self, pages: int, forget: Callable[[int], None]) -> None:
        """``forget(page)`` tells the index that a cached page is about to be reused."""
        self.pages = pages
        self._forget = forget
        self._references = [0] * pages
        self._free = list(range(pages - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._indexed: set[int] = set()
        self._pins: dict[int, float] = {}  # page -> kept until (s)
        self._pinned_cached = 0

    @property
    def available(self) -> int:
        """Pages that ``reserve`` can hand out."""
        return len(self._free) + len(self._cached) - self._pinned_cached

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def used(self) -> int:
        """Pages referenced by sequences."""
        return self.pages - len(self._free) - len(self._cached)

    @property
    def indexed(self) -> int:
        """Pages that the index knows."""
        return len(self._indexed)

    def references(self, page: int) -> int:
        return self._references[page]

    def is_cached(self, page: int) -> bool:
        return page in self._cached

    def reserve(self, count: int) -> list[int] | None:
        """``count`` pages with one reference each, or None and nothing changed."""
        if count > self.available:
            return None
        taken: list[int] = []
        for _ in range(count):
            page = self._free.pop() if self._free else self._evict()
            self._references[page] = 1
            taken.append(page)
        return taken

    def _evict(self) -> int:
        for page in self._cached:
            if page not in self._pins:
                break
        else:
            raise InvariantBroken("no cached page is left to reuse, yet some were counted as available")
        del self._cached[page]
        self._indexed.discard(page)
        self._forget(page)
        return page

    def share(self, pages: Iterable[int]) -> None:
        """One more reference to pages that are cached or referenced. Raises InvariantBroken for a free one."""
        for page in pages:
            if self._references[page] == 0:
                if page not in self._cached:
                    raise InvariantBroken(f"page {page} is free and cannot be shared")
                del self._cached[page]
                self._pinned_cached -= page in self._pins
            self._references[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One reference less to each, the last page first."""
        for page in reversed(pages):
            count = self._references[page] - 1
            if count < 0:
                raise InvariantBroken(f"page {page} is released more often than it is held")
            self._references[page] = count
            if count:
                continue
            if page in self._indexed:
                self._cached[page] = None
                self._pinned_cached += page in self._pins
            else:
                self._free.append(page)

    def keep(self, page: int) -> None:
        """The index knows this page: when its last reference goes, it is cached instead of freed."""
        if self._references[page] == 0:
            raise InvariantBroken(f"page {page} is not held and cannot be sealed")
        self._indexed.add(page)

    def drop(self, page: int) -> None:
        """The index does not know this page any more: it is freed now, or with its last reference."""
        self._indexed.discard(page)
        if page in self._cached:
            del self._cached[page]
            self._pinned_cached -= page in self._pins
            self._free.append(page)
        self._pins.pop(page, None)

    def pin(self, page: int, until_s: float) -> None:
        """Keep an indexed page from eviction. Raises InvariantBroken when the index does not know it."""
        if page not in self._indexed:
            raise InvariantBroken(f"page {page} is not indexed and cannot be pinned")
        if page not in self._pins:
            self._pinned_cached += page in self._cached
        self._pins[page] = until_s

    def unpin_expired(self, now: float) -> None:
        for page in [page for page, until in self._pins.items() if until <= now]:
            self._unpin(page)

    def unpin_latest(self) -> bool:
        """Release the pin that would expire last; False when there is none. Pins cannot block progress."""
        if not self._pins:
            return False
        self._unpin(max(self._pins, key=lambda page: (self._pins[page], page)))
        return True

    def _unpin(self, page: int) -> None:
        del self._pins[page]
        self._pinned_cached -= page in self._cached

    def audit(self, held: Iterable[Sequence[int]]) -> None:
        """Check exact conservation against the pages that sequences hold. Raises InvariantBroken."""
        counts = [0] * self.pages
        for pages in held:
            for page in pages:
                counts[page] += 1
        if counts != self._references:
            wrong = next(page for page in range(self.pages) if counts[page] != self._references[page])
            raise InvariantBroken(f"page {wrong}: {self._references[wrong]} references, {counts[wrong]} holders")
        rest = [*self._free, *self._cached]
        if len(rest) != len(set(rest)) or any(counts[page] for page in rest):
            raise InvariantBroken("a page is free or cached twice, or while it is held")
        if len(rest) + sum(1 for count in counts if count) != self.pages:
            raise InvariantBroken("pages were lost")
        if any(page not in self._indexed for page in self._cached):
            raise InvariantBroken("a cached page is not in the index")
        if self._pinned_cached != sum(page in self._pins for page in self._cached):
            raise InvariantBroken("pinned pages are miscounted")
