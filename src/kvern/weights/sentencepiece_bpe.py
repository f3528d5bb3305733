"""SentencePiece's BPE, exactly: the best-scored adjacent pair merges first, the leftmost among equals.

The `tokenizers` library ranks merges, not pieces, so it cannot express "any split of a piece has the piece's own
score"; and a merge list for 262,144 pieces takes seconds to make. This needs the pieces and their scores only.
Source of the rules: the SentencePiece project (bpe_model.cc), by behaviour; checked against the library in tests.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence

import msgspec

from kvern.weights.literal_match import LiteralMatcher

SPACE_MARK = "\u2581"
_CACHE_WORDS = 50_000
_CACHE_WORD_LENGTH = 64


class PieceSet(msgspec.Struct, frozen=True):
    """The model file's pieces, sorted by role. Spellings use U+2581 for the space."""

    mergeable: Mapping[str, int]  # normal, user-defined and unused pieces
    scores: Sequence[float]  # by id
    user_defined: Mapping[str, int]  # found before merging, never merged
    control: Mapping[str, int]  # spelled out only in trusted text
    unused: frozenset[int]  # may be passed through, never emitted
    bytes: tuple[int, ...]  # 256 ids of <0x00>..<0xFF>, or empty: no byte fallback
    unknown: int
    space_prefix: bool  # put a space before the text


class SentencePieceBpe:
    """Encodes text with a SentencePiece BPE vocabulary."""

    def __init__(self, pieces: PieceSet) -> None:
        self._pieces = pieces
        self._user_defined = LiteralMatcher(pieces.user_defined)
        self._control = LiteralMatcher(pieces.control)
        self._boundary = _word_boundary(pieces.mergeable)
        self._words: dict[str, list[int]] = {}

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Ids of ``text``; control tokens spelled out in it are recognised when ``parse_special``."""
        ids: list[int] = []
        for part in self._control.split(text) if parse_special else ([text] if text else []):
            if isinstance(part, int):
                ids.append(part)
                continue
            marked = part.replace(" ", SPACE_MARK)
            self._encode_plain(SPACE_MARK + marked if self._pieces.space_prefix else marked, ids)
        return ids

    def _encode_plain(self, text: str, ids: list[int]) -> None:
        for part in self._user_defined.split(text):
            if isinstance(part, int):
                ids.append(part)
                continue
            for word in self._boundary.split(part):
                known = self._words.get(word)
                if known is None:
                    known = self._encode_word(word)
                if known and ids and known[0] == ids[-1] == self._pieces.unknown:
                    known = known[1:]  # a run of unknown characters is one unknown token
                ids.extend(known)

    def _encode_word(self, word: str) -> list[int]:
        ids: list[int] = []
        for piece in merge(word, self._pieces):
            self._emit(piece, ids)
        if len(word) <= _CACHE_WORD_LENGTH:
            if len(self._words) >= _CACHE_WORDS:
                self._words.clear()
            self._words[word] = ids
        return ids

    def _emit(self, piece: str, ids: list[int]) -> None:
        pieces = self._pieces
        token = pieces.mergeable.get(piece)
        if token is not None:
            ids.append(token)
        elif pieces.bytes:
            ids.extend(pieces.bytes[byte] for byte in piece.encode("utf-8"))
        elif not ids or ids[-1] != pieces.unknown:
            ids.append(pieces.unknown)


def merge(word: str, pieces: PieceSet) -> list[str]:
    """Merge the characters of ``word`` bottom-up; O(n log n). Unused pieces are taken apart again at the end."""
    symbols = list(word)
    following = [*range(1, len(symbols)), -1]
    preceding = list(range(-1, len(symbols) - 1))
    agenda: list[tuple[float, int, int, str]] = []
    halves: dict[str, tuple[str, str]] = {}

    def consider(left: int, right: int) -> None:
        whole = symbols[left] + symbols[right]
        token = pieces.mergeable.get(whole)
        if token is not None:
            heapq.heappush(agenda, (-pieces.scores[token], left, right, whole))
            if token in pieces.unused:
                halves[whole] = (symbols[left], symbols[right])

    for left in range(len(symbols) - 1):
        consider(left, left + 1)
    while agenda:
        _, left, right, whole = heapq.heappop(agenda)
        if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != len(whole):
            continue  # one side has merged with another neighbour meanwhile
        symbols[left], symbols[right] = whole, ""
        following[left] = after = following[right]
        if after >= 0:
            preceding[after] = left
            consider(left, after)
        if preceding[left] >= 0:
            consider(preceding[left], left)
    found = [symbol for symbol in symbols if symbol]
    return _take_apart(found, halves) if halves else found


def _take_apart(found: list[str], halves: Mapping[str, tuple[str, str]]) -> list[str]:
    """Replace unused pieces by what they were merged from, as deep as needed (iterative: files are not trusted)."""
    result: list[str] = []
    stack = found[::-1]
    while stack:
        piece = stack.pop()
        if piece in halves:
            left, right = halves[piece]
            stack += (right, left)
        else:
            result.append(piece)
    return result


def _word_boundary(mergeable: Mapping[str, int]) -> re.Pattern[str]:
    """Where no merge can reach across, so that words may be encoded (and remembered) one by one.

    That is before a run of space marks, unless some piece holds a space mark just after the character before it.
    """
    glue = set()
    for piece in mergeable:
        at = piece.find(SPACE_MARK, 1)
        while at > 0:
            glue.add(piece[at - 1])
            at = piece.find(SPACE_MARK, at + 1)
    glue.add(SPACE_MARK)
    inside = "".join(re.escape(character) for character in sorted(glue))
    return re.compile(f"(?<=[^{inside}])(?={SPACE_MARK})")
