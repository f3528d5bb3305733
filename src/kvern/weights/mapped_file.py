"""Files of tensors mapped into memory: read-only, zero-copy, every range checked against the file."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from kvern.core.errors import ModelFileError

MAX_DIMENSIONS = 4
MAX_ELEMENTS = 1 << 48  # of one tensor; far above any real one, far below where a product could overflow int64


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies. ``shape`` is in C order (a matrix is (rows, columns)); offsets and sizes in bytes.

    ``format`` is a block format ("Q4_1"), a float type ("F32", "F16", "BF16") or, in safetensors files, any other
    element type ("I64"). ``part`` is the index of the file among the parts of a split model.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    part: int = 0


class MappedFile:
    """One regular file, mapped read-only. Raises ModelFileError when it cannot be opened or is empty.

    As with any map, shortening the file while it is open kills the process that then reads the missing end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path}: cannot be opened ({error})") from error
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise ModelFileError(f"{path}: is not a regular file")
            if status.st_size == 0:
                raise ModelFileError(f"{path}: is empty")
            self.map = mmap.mmap(handle, status.st_size, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be mapped ({error})") from error
        finally:
            os.close(handle)
        self.size = len(self.map)

    def bytes_at(self, offset: int, count: int) -> NDArray[np.uint8]:
        """A read-only view, uint8 [count], of bytes that the caller has checked to be inside the file."""
        return np.frombuffer(self.map, np.uint8, count, offset)

    def release(self, offset: int, count: int) -> None:
        """Let go of the resident pages that lie wholly inside the range; reading them again loads them again."""
        begin = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = offset + count
        end = self.size if end == self.size else end // mmap.PAGESIZE * mmap.PAGESIZE
        if end > begin:
            self.map.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def close(self) -> None:
        """Unmap. While arrays still look into the map, it stays until the last of them is gone."""
        try:
            self.map.close()
        except BufferError:
            return


class TensorFile:
    """Named tensors over one or more mapped files; what every reader of ``kvern.weights`` returns.

    ``metadata`` is what the file says of itself: scalars, texts and lists.
    """

    def __init__(
        self, maps: Sequence[MappedFile], metadata: dict[str, object], tensors: Iterable[TensorInfo]
    ) -> None:
        self.metadata = metadata
        self.tensors: dict[str, TensorInfo] = {}
        self._maps = tuple(maps)
        for info in tensors:
            if info.name in self.tensors:
                raise ModelFileError(f"{self.path}: tensor {info.name!r} is there twice")
            self.tensors[info.name] = info

    @property
    def maps(self) -> tuple[MappedFile, ...]:
        """The files, in order."""
        return self._maps

    @property
    def path(self) -> Path:
        """The first file."""
        return self._maps[0].path

    @property
    def file_bytes(self) -> int:
        """Size of all files together."""
        return sum(part.size for part in self._maps)

    def info(self, name: str) -> TensorInfo:
        """The tensor of this name; raises ModelFileError when there is none."""
        try:
            return self.tensors[name]
        except KeyError:
            raise ModelFileError(f"{self.path}: has no tensor {name!r}") from None

    def data(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes, uint8 [nbytes]: a read-only view of the mapped file, nothing is copied."""
        info = self.info(name)
        return self._maps[info.part].bytes_at(info.offset, info.nbytes)

    def release(self, name: str) -> None:
        """The tensor will not be read again soon: its resident pages may go."""
        info = self.info(name)
        self._maps[info.part].release(info.offset, info.nbytes)

    def close(self) -> None:
        """Unmap every file (arrays still in use keep theirs)."""
        for part in self._maps:
            part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def elements(shape: Sequence[int], what: str) -> int:
    """The product of ``shape``; raises ModelFileError, naming ``what``, when it is absurd."""
    count = 1
    for size in shape:
        if size < 0 or size > MAX_ELEMENTS:
            raise ModelFileError(f"{what}: dimension {size} is out of range")
        count *= size
        if count > MAX_ELEMENTS:
            raise ModelFileError(f"{what}: shape {tuple(shape)} is larger than any file could hold")
    return count


def refuse_overlaps(path: Path, tensors: Iterable[TensorInfo]) -> None:
    """Raise ModelFileError when two tensors of one file share a byte."""
    previous: TensorInfo | None = None
    for info in sorted((t for t in tensors if t.nbytes), key=lambda t: (t.offset, t.nbytes)):
        if previous is not None and info.offset < previous.offset + previous.nbytes:
            raise ModelFileError(f"{path}: tensors {previous.name!r} and {info.name!r} overlap")
        previous = info
