"""What each token id stands for: its spelling in the vocabulary and the bytes it decodes to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

SpellingStyle = Literal["byte_level", "sentencepiece"]

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_SPACE_MARK = "\u2581"


def byte_alphabet() -> dict[str, int]:
    """The 256 printable characters by which byte-level BPE (GPT-2) spells bytes: character -> byte.

    Printable Latin-1 characters stand for themselves; the other bytes, ascending, take U+0100 upwards.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


_BYTE_OF = byte_alphabet()


class TokenTable:
    """Spelling and bytes of every id.

    ``texts[id]`` is the vocabulary's spelling (None: a hole). ``literal`` ids (added tokens) decode to their
    spelling unchanged; ``special`` ids are control tokens such as end of turn.
    """

    def __init__(
        self,
        texts: Sequence[str | None],
        style: SpellingStyle,
        special: frozenset[int] = frozenset(),
        literal: frozenset[int] = frozenset(),
    ) -> None:
        self._texts = texts
        self._style = style
        self.special = special
        self._literal = special | literal
        self._bytes: list[bytes | None] = [None] * len(texts)

    def __len__(self) -> int:
        return len(self._texts)

    def text_of(self, token: int) -> str:
        """Spelling in the vocabulary; empty for ids the vocabulary does not have (a padded output head)."""
        return (self._texts[token] or "") if 0 <= token < len(self._texts) else ""

    def bytes_of(self, token: int) -> bytes:
        """The bytes this token adds to the text; empty for ids the vocabulary does not have."""
        if not 0 <= token < len(self._texts):
            return b""
        known = self._bytes[token]
        if known is None:
            known = self._bytes[token] = self._spell(token)
        return known

    def _spell(self, token: int) -> bytes:
        text = self._texts[token] or ""
        if self._style == "byte_level":
            if token in self._literal or any(character not in _BYTE_OF for character in text):
                return text.encode("utf-8", "replace")
            return bytes(_BYTE_OF[character] for character in text)
        if token in self.special:
            return text.encode("utf-8", "replace")
        single = _BYTE_PIECE.match(text)
        if single:
            return bytes([int(single[1], 16)])
        return text.replace(_SPACE_MARK, " ").encode("utf-8", "replace")
