"""From a stream of tokens to a stream of text: whole characters only, and never part of a stop string.

Chunking never shows: the pieces joined are the text of all tokens decoded at once, cut where the first stop string
completes.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec


class TokenBytes(Protocol):
    """What decoding needs of a tokenizer."""

    drops_first_space: bool

    def token_bytes(self, token: int) -> bytes: ...

    def is_special(self, token: int) -> bool: ...


class IncrementalDecoder:
    """Token ids to text, holding back the bytes of an unfinished UTF-8 character."""

    def __init__(self, tokenizer: TokenBytes, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drop_space = tokenizer.drops_first_space

    def feed(self, tokens: Iterable[int]) -> str:
        """Text that these tokens complete. Bytes that can never be UTF-8 become U+FFFD."""
        tokenizer = self._tokenizer
        data = b"".join(
            tokenizer.token_bytes(token)
            for token in tokens
            if not (self._skip_special and tokenizer.is_special(token))
        )
        return self._without_first_space(self._utf8.decode(data))

    def flush(self) -> str:
        """The end of the text: an unfinished character becomes U+FFFD."""
        return self._without_first_space(self._utf8.decode(b"", final=True))

    def _without_first_space(self, text: str) -> str:
        if self._drop_space and text:
            self._drop_space = False
            return text.removeprefix(" ")
        return text


class StopMatcher:
    """Finds the stop string that completes first; of several that complete together, the longest."""

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """Text now safe to pass on. After a match (``matched`` is set) nothing more comes out."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        buffer = self._held + text
        hits = [(start + len(stop), start, stop) for stop in self._stops if (start := buffer.find(stop)) >= 0]
        if hits:
            end, start, self.matched = min(hits)
            self._held = ""
            return buffer[: end if self._include else start]
        keep = self._unsafe_suffix(buffer)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep]

    def flush(self) -> str:
        """The text ended: what was held back was not a stop string after all."""
        held, self._held = self._held, ""
        return held

    def _unsafe_suffix(self, buffer: str) -> int:
        """Length of the longest end of ``buffer`` that a stop string may still begin with."""
        for size in range(min(self._longest - 1, len(buffer)), 0, -1):
            suffix = buffer[len(buffer) - size :]
            if any(len(stop) > size and stop.startswith(suffix) for stop in self._stops):
                return size
        return 0


class StreamedText(msgspec.Struct, frozen=True):
    """What some tokens brought. ``tokens`` of them belong to the answer; those after a stop string do not."""

    text: str
    tokens: int
    stopped: str | None = None


class TextStream:
    """One answer's text: decoding, then stop strings (not looked for within the first ``min_tokens`` tokens)."""

    def __init__(
        self,
        tokenizer: TokenBytes,
        stops: Sequence[str] = (),
        *,
        include_stop: bool = False,
        skip_special: bool = True,
        min_tokens: int = 0,
    ) -> None:
        self._decoder = IncrementalDecoder(tokenizer, skip_special)
        self._matcher = StopMatcher(stops, include_stop)
        self._free = min_tokens if stops else 0

    def feed(self, tokens: Sequence[int]) -> StreamedText:
        """Add tokens in order; stops at the token that completes a stop string."""
        parts = []
        for count, token in enumerate(tokens, start=1):
            text = self._decoder.feed((token,))
            if self._free > 0:
                self._free -= 1
                parts.append(text)
                continue
            parts.append(self._matcher.feed(text))
            if self._matcher.matched is not None:
                return StreamedText("".join(parts), count, self._matcher.matched)
        return StreamedText("".join(parts), len(tokens))

    def finish(self) -> StreamedText:
        """The last tokens have come: everything held back. May complete a stop string (an unfinished character)."""
        text = self._matcher.feed(self._decoder.flush())
        return StreamedText(text + self._matcher.flush(), 0, self._matcher.matched)
