"""The metadata values of a GGUF file: a cursor that cannot leave the file, and typed values read through it."""

from __future__ import annotations

import struct

import numpy as np

from kvern.core.errors import ModelFileError

MAX_TEXT_BYTES = 1 << 26  # one text, such as a chat template or a tokenizer in JSON
MAX_ARRAY = 1 << 22  # elements of one array: vocabularies have up to some 300 thousand, merges twice that
MAX_ARRAY_TOTAL = 1 << 23  # elements of all arrays of a file
MAX_ARRAY_DEPTH = 2  # an array of arrays of scalars

BOOL, TEXT, ARRAY = 7, 8, 9
# Type number in the file -> (struct code, NumPy type).
NUMBERS = {
    0: ("<B", "<u1"),
    1: ("<b", "<i1"),
    2: ("<H", "<u2"),
    3: ("<h", "<i2"),
    4: ("<I", "<u4"),
    5: ("<i", "<i4"),
    6: ("<f", "<f4"),
    10: ("<Q", "<u8"),
    11: ("<q", "<i8"),
    12: ("<d", "<f8"),
}
_LENGTH = struct.Struct("<Q")


class Cursor:
    """A position in the bytes of a file. Every method raises ModelFileError rather than read past the end."""

    def __init__(self, view: memoryview, path: str) -> None:
        self.view = view
        self.path = path
        self.at = 0
        self.size = len(view)

    def wrong(self, reason: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: {reason}")

    def take(self, count: int, what: str) -> memoryview:
        """The next ``count`` bytes, not copied."""
        if count > self.size - self.at:
            raise self.wrong(f"ends within {what} (at byte {self.at} of {self.size}): truncated or damaged")
        self.at += count
        return self.view[self.at - count : self.at]

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def expect_room(self, count: int, least_bytes: int, limit: int, what: str) -> None:
        """``count`` things of at least ``least_bytes`` each must fit the limit and what is left of the file."""
        if count > limit:
            raise self.wrong(f"claims {count} {what}; at most {limit} are read")
        if count * least_bytes > self.size - self.at:
            raise self.wrong(f"claims {count} {what}, more than fit in its {self.size} bytes: truncated or damaged")

    def text(self, what: str, limit: int = MAX_TEXT_BYTES) -> str:
        """A length (u64) and that many bytes of UTF-8."""
        count = self.u64(what)
        if count > limit:
            raise self.wrong(f"{what} claims {count} bytes; at most {limit} are read")
        try:
            return str(self.take(count, what), "utf-8")
        except UnicodeDecodeError as error:
            raise self.wrong(f"{what} is not valid UTF-8 ({error.reason})") from None


class ValueReader:
    """Reads typed values; counts the elements of all arrays of the file against one limit."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._left = MAX_ARRAY_TOTAL

    def value(self, key: str) -> object:
        """The value of ``key``: int, float, bool, str or a list."""
        what = f"key {key!r:.80}"
        kind = self._cursor.u32(what)
        if kind == ARRAY:
            return self._array(what, 1)
        if kind == TEXT:
            return self._cursor.text(what)
        if kind == BOOL:
            return self._bools(what, 1)[0]
        code = self._number(kind, what)[0]
        value: object = struct.unpack(code, self._cursor.take(struct.calcsize(code), what))[0]
        return value

    def _number(self, kind: int, what: str) -> tuple[str, str]:
        try:
            return NUMBERS[kind]
        except KeyError:
            raise self._cursor.wrong(f"{what} has the unknown type {kind}") from None

    def _array(self, what: str, depth: int) -> list[object]:
        if depth > MAX_ARRAY_DEPTH:
            raise self._cursor.wrong(f"{what}: arrays are nested more than {MAX_ARRAY_DEPTH} deep")
        kind = self._cursor.u32(what)
        count = self._cursor.u64(what)
        # An array in an array has at least a type and a count.
        least = {ARRAY: 12, TEXT: 8, BOOL: 1}.get(kind) or struct.calcsize(self._number(kind, what)[0])
        self._cursor.expect_room(count, least, min(MAX_ARRAY, self._left), f"elements in {what}")
        self._left -= count
        if kind == ARRAY:
            return [self._array(what, depth + 1) for _ in range(count)]
        if kind == TEXT:
            return self._texts(what, count)
        if kind == BOOL:
            return list(self._bools(what, count))
        dtype = np.dtype(NUMBERS[kind][1])
        values: list[object] = np.frombuffer(self._cursor.take(count * dtype.itemsize, what), dtype).tolist()
        return values

    def _bools(self, what: str, count: int) -> list[bool]:
        raw = bytes(self._cursor.take(count, what))
        if raw.strip(b"\x00\x01"):
            raise self._cursor.wrong(f"{what}: a truth value is neither 0 nor 1")
        return [byte == 1 for byte in raw]

    def _texts(self, what: str, count: int) -> list[object]:
        """A loop of its own, because a vocabulary has a quarter of a million of these."""
        cursor, view, size, unpack = self._cursor, self._cursor.view, self._cursor.size, _LENGTH.unpack_from
        at = cursor.at
        texts: list[object] = []
        try:
            for _ in range(count):
                begin = at + 8
                at = begin + unpack(view, at)[0]
                if at > size:
                    raise cursor.wrong(f"ends within {what}: truncated or damaged")
                texts.append(str(view[begin:at], "utf-8"))
        except struct.error:
            raise cursor.wrong(f"ends within {what}: truncated or damaged") from None
        except UnicodeDecodeError as error:
            raise cursor.wrong(f"{what}: a text is not valid UTF-8 ({error.reason})") from None
        cursor.at = at
        return texts
