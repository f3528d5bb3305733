"""Which sealed page holds the KV of which tokens after which prefix."""

from __future__ import annotations

from array import array
from hashlib import blake2b
from typing import NamedTuple

from kvern.kv.segments import KvView

_BYTES = 16


class _Page(NamedTuple):
    page: int
    tokens: bytes


class PrefixIndex:
    """A chain of keyed hashes over whole pages, one chain per cache domain and salt.

    The digest of a page covers the domain (numerics version, KV format), the ``revision`` of the weights when its
    chain began, the salt, and every token up to its end, so a page is found only by what its KV depends on. A hit
    also compares the page's tokens: a collision of digests
    costs a recomputation, never a wrong answer. The key keeps clients from constructing collisions.
    """

    def __init__(self, page_tokens: int, *, key: bytes, domain: bytes) -> None:
        """``key``: 0 to 64 secret bytes."""
        self._page_tokens = page_tokens
        self._key, self._domain = key, domain
        self.revision = 0
        self._by_digest: dict[bytes, _Page] = {}
        self._by_page: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._by_digest)

    def root(self, salt: bytes) -> bytes:
        """Start of a salt's chains; also the name of their position frame."""
        head = len(self._domain).to_bytes(8, "little") + self._domain
        head += self.revision.to_bytes(8, "little")
        return blake2b(head + salt, digest_size=_BYTES, key=self._key, person=b"kvern-root").digest()

    def extend(self, view: KvView, salt: bytes, known: list[int], pages: int) -> None:
        """Make ``view.digests`` cover the first ``pages`` full pages of the known tokens."""
        digests = view.digests
        parent = digests[-1] if digests else self.root(salt)
        for number in range(len(digests), pages):
            data = parent + self._tokens(known, number)
            parent = blake2b(data, digest_size=_BYTES, key=self._key, person=b"kvern-page").digest()
            digests.append(parent)

    def _tokens(self, known: list[int], number: int) -> bytes:
        begin = number * self._page_tokens
        return array("q", known[begin : begin + self._page_tokens]).tobytes()

    def match(self, view: KvView, salt: bytes, known: list[int]) -> tuple[int, ...]:
        """Pages of the longest known prefix that leaves at least the last known token to compute."""
        found: list[int] = []
        for number in range((len(known) - 1) // self._page_tokens):
            if number >= len(view.digests):
                self.extend(view, salt, known, number + 1)
            entry = self._by_digest.get(view.digests[number])
            if entry is None or entry.tokens != self._tokens(known, number):
                break
            found.append(entry.page)
        return tuple(found)

    def insert(self, digest: bytes, known: list[int], number: int, page: int) -> bool:
        """Offer a full, computed page; False when the same content is there already (the first one stays)."""
        if digest in self._by_digest:
            return False
        self._by_digest[digest] = _Page(page, self._tokens(known, number))
        self._by_page[page] = digest
        return True

    def forget(self, page: int) -> None:
        """The page is about to be reused, or its content is not to be trusted. Unknown pages are ignored."""
        digest = self._by_page.pop(page, None)
        if digest is not None:
            del self._by_digest[digest]
