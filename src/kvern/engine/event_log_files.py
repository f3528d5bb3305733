"""The event log on disk: framed lines in numbered files, the oldest dropped once the whole passes a size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

FLUSH_BYTES = 64 << 10


class EventLogFiles:
    """Appends length-framed records (4 bytes little endian, then the record) to ``<folder>/<run>-<number>.kvlog``.

    ``total_bytes`` bounds what one run keeps, and what is there when one begins: the oldest files of earlier runs go.
    A file holds a quarter of that, with mode 0600: prompts are in it. When the disk refuses a write the log ends,
    with ``failure`` set: serving goes on.
    """

    def __init__(self, folder: Path, run: str, *, total_bytes: int = 256 << 20) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _drop_oldest(folder, total_bytes)
        self._folder, self._run = folder, run
        self._file_bytes = max(1, total_bytes // 4)
        self._buffer = bytearray()
        self._number, self._written = 0, 0
        self._file = self._open()
        self.failure: str | None = None

    def append(self, record: bytes) -> None:
        """Keep one record; written through when the buffer is full, on ``flush`` and on ``close``."""
        self._buffer += len(record).to_bytes(4, "little")
        self._buffer += record
        if len(self._buffer) >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand what is buffered to the operating system."""
        if not self._buffer or self.failure is not None:
            self._buffer.clear()
            return
        try:
            if self._written and self._written + len(self._buffer) > self._file_bytes:
                self._rotate()
            self._file.write(self._buffer)
            self._file.flush()
        except OSError as error:
            self.failure = f"the event log ends here: {error}"
        self._written += len(self._buffer)
        self._buffer.clear()

    def close(self) -> None:
        self.flush()
        self._file.close()

    def _open(self) -> BinaryIO:
        path = self._folder / f"{self._run}-{self._number:06d}.kvlog"
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")

    def _rotate(self) -> None:
        self._file.close()
        self._number, self._written = self._number + 1, 0
        self._file = self._open()
        (self._folder / f"{self._run}-{self._number - 4:06d}.kvlog").unlink(missing_ok=True)


def _drop_oldest(folder: Path, total_bytes: int) -> None:
    """Remove the oldest logs until at most ``total_bytes`` are left."""
    sizes = []
    for path in folder.glob("*.kvlog"):
        with suppress(OSError):  # another engine may be dropping it too
            sizes.append((path.stat().st_mtime, path.stat().st_size, path))
    left = sum(size for _, size, _ in sizes)
    for _, size, path in sorted(sizes):
        if left <= total_bytes:
            return
        path.unlink(missing_ok=True)
        left -= size


def read_records(folder: Path, run: str) -> Iterator[bytes]:
    """Records of a run in order; a record cut short by a crash ends the reading."""
    for path in sorted(folder.glob(f"{run}-*.kvlog")):
        data = path.read_bytes()
        at = 0
        while at + 4 <= len(data):
            end = at + 4 + int.from_bytes(data[at : at + 4], "little")
            if end > len(data):
                return
            yield data[at + 4 : end]
            at = end
