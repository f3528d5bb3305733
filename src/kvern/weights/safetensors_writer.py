"""Writer of safetensors files: tensors are streamed one after the other, the header is written last.

The header stands first in the file, so room is reserved for it and what is left is filled with spaces, as the format
allows. The file appears under its name whole or not at all.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kvern.core.errors import ModelFileError
from kvern.weights.safetensors import ITEM_BYTES
from kvern.weights.safetensors import MAX_HEADER_BYTES as MOST

_LENGTH_BYTES = 8
_ENTRY_BYTES = 160  # of the JSON of one tensor, without its name, at most


class SafetensorsWriter:
    """``with SafetensorsWriter(path, names, text_bytes) as w: w.add(...); w.finish({...}); w.publish()``.

    ``names`` are those of all tensors to come, ``text_bytes`` an upper bound of the metadata's JSON. Until
    ``publish`` the data lies in ``temporary`` beside ``path``; leaving the block without it removes that. Raises
    ModelFileError when the disk refuses.
    """

    def __init__(self, path: Path, names: Iterable[str], text_bytes: int) -> None:
        self.path = path
        room = text_bytes + 64 + sum(len(json.dumps(name)) + _ENTRY_BYTES for name in names)
        self._room = -(-(room + _LENGTH_BYTES) // 4096) * 4096 - _LENGTH_BYTES
        if self._room > MOST:
            raise ModelFileError(f"{path}: a header of {self._room} bytes would be more than readers accept")
        self._entries: dict[str, object] = {}
        self._at = 0
        try:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".partial")
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be written ({error.strerror})") from error
        self.temporary = Path(name)
        self._file = os.fdopen(handle, "r+b")
        self._file.seek(_LENGTH_BYTES + self._room)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self.temporary.unlink(missing_ok=True)

    def add(self, name: str, dtype: str, shape: tuple[int, ...], parts: Iterable[NDArray[np.generic]]) -> None:
        """Append a tensor whose bytes come as ``parts`` in order. Raises ModelFileError on a wrong size."""
        begin = self._at
        for part in parts:
            data = np.ascontiguousarray(part)
            self._write(data.reshape(-1).view(np.uint8).data)
            self._at += data.nbytes
        expected = ITEM_BYTES[dtype]
        for side in shape:
            expected *= side
        if self._at - begin != expected or name in self._entries:
            raise ModelFileError(f"{self.path}: {name!r} got {self._at - begin} bytes, needs {expected}, once")
        self._entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, self._at]}

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header (again, if called again): ``temporary`` is then a whole file, on the disk."""
        raw = json.dumps({"__metadata__": dict(metadata), **self._entries}, ensure_ascii=False).encode()
        if len(raw) > self._room:
            raise ModelFileError(f"{self.path}: the header takes {len(raw)} bytes of {self._room} reserved")
        try:
            self._file.seek(0)
            self._write(memoryview(self._room.to_bytes(_LENGTH_BYTES, "little") + raw.ljust(self._room)))
            self._file.seek(0, os.SEEK_END)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise ModelFileError(f"{self.path}: cannot be written ({error.strerror})") from error

    def publish(self) -> None:
        """Give the finished file its name in one step, replacing what had it."""
        mask = os.umask(0)
        os.umask(mask)
        os.fchmod(self._file.fileno(), 0o666 & ~mask)
        os.replace(self.temporary, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _write(self, data: memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise ModelFileError(f"{self.path}: cannot be written ({error.strerror})") from error
