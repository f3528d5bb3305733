"""What a weight format says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvern.core.errors import ModelFileError

Decoder = Callable[[NDArray[np.uint8], int], NDArray[np.float32]]
Encoder = Callable[[NDArray[np.float32]], NDArray[np.uint8]]

NO_HEADER: NDArray[np.uint8] = np.empty(0, np.uint8)


def no_header() -> NDArray[np.uint8]:
    """The header of formats without one."""
    return NO_HEADER


@dataclass(frozen=True, slots=True)
class HeaderedRows:
    """Coding of formats that say something of the matrix as a whole: uint8 ``header`` beside the rows.

    ``row_bytes`` takes (columns, header) and raises ModelFileError for a header that is not well formed,
    ``decode_rows`` (uint8 [rows, row bytes], columns, header), ``encode_matrix`` float32 [rows, columns] and returns
    (header, uint8 [rows, row bytes]). Formats whose rows can be made a few at a time under a header that is there
    already also have ``plain_header`` (columns -> header, what is known without looking at any numbers) and
    ``encode_rows`` (float32 [rows, columns], header -> uint8 [rows, row bytes]).
    """

    row_bytes: Callable[[int, NDArray[np.uint8]], int]
    decode_rows: Callable[[NDArray[np.uint8], int, NDArray[np.uint8]], NDArray[np.float32]]
    encode_matrix: Callable[[NDArray[np.float32]], tuple[NDArray[np.uint8], NDArray[np.uint8]]]
    plain_header: Callable[[int], NDArray[np.uint8]] | None = None
    encode_rows: Callable[[NDArray[np.float32], NDArray[np.uint8]], NDArray[np.uint8]] | None = None


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """A format of matrices stored row by row, each row in blocks of ``block`` neighbouring columns.

    ``activations`` name the forms that inputs may be brought to for it, its own first; see
    ``kvern.formats.activations``. ``row_overhead`` are bytes of a row outside its blocks. ``decode_rows`` takes
    uint8 [rows, row bytes] and the columns, ``encode_rows`` float32 [rows, columns]; ``headered`` takes their place
    in formats with a header.
    """

    name: str
    block: int
    block_bytes: int
    activations: tuple[str, ...]
    decode_rows: Decoder
    encode_rows: Encoder
    row_overhead: int = 0
    headered: HeaderedRows | None = None

    @property
    def activation(self) -> str:
        """The form its inputs are brought to unless another is asked for."""
        return self.activations[0]

    @property
    def bits_per_weight(self) -> float:
        """Bits of a weight within a block."""
        return 8 * self.block_bytes / self.block

    def row_bytes(self, columns: int, header: NDArray[np.uint8] = NO_HEADER) -> int:
        """Bytes of one row; raises ModelFileError when ``columns`` is not a positive multiple of the block, or the
        header does not fit."""
        if columns <= 0 or columns % self.block:
            raise ModelFileError(f"{self.name}: rows of {columns} do not divide into blocks of {self.block}")
        if self.headered is not None:
            return self.headered.row_bytes(columns, header)
        if header.size:
            raise ModelFileError(f"{self.name}: this format has no header, {header.size} bytes were given")
        return columns // self.block * self.block_bytes + self.row_overhead

    def decode(
        self, data: NDArray[np.uint8], rows: int, columns: int, header: NDArray[np.uint8] = NO_HEADER
    ) -> NDArray[np.float32]:
        """uint8 data of all rows (any shape) -> float32 [rows, columns]; raises ModelFileError on a wrong size."""
        expected = rows * self.row_bytes(columns, header)
        if data.dtype != np.uint8 or data.size != expected:
            raise ModelFileError(f"{self.name}: {rows} x {columns} needs {expected} bytes, not {data.size}")
        row_data = np.ascontiguousarray(data).reshape(rows, -1)
        # A damaged file may hold infinite scales; what comes of them is seen later, as logits that are not finite.
        with np.errstate(over="ignore", invalid="ignore"):
            if self.headered is not None:
                values = self.headered.decode_rows(row_data, columns, header)
            else:
                values = self.decode_rows(row_data, columns)
        return values.reshape(rows, columns)

    def plain_header(self, columns: int) -> NDArray[np.uint8]:
        """The header under which ``encode`` can make rows of any matrix; empty in formats without one."""
        if self.headered is None or self.headered.plain_header is None:
            return NO_HEADER
        return self.headered.plain_header(columns)

    def encode(self, values: NDArray[np.float32], header: NDArray[np.uint8] = NO_HEADER) -> NDArray[np.uint8]:
        """float32 [rows, columns], finite -> uint8 [rows, row bytes]: a valid, simple encoding, not the best one.
        Raises ModelFileError where rows cannot be made without the whole matrix (``encode_matrix`` serves all)."""
        if self.headered is None:
            return self.encode_matrix(values)[1]
        if self.headered.encode_rows is None:
            raise ModelFileError(f"{self.name}: rows of this format are encoded with the whole matrix at once")
        return self.headered.encode_rows(self._finite(values), header)

    def encode_matrix(self, values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """float32 [rows, columns], finite -> header (empty in most formats) and uint8 [rows, row bytes]."""
        whole = self._finite(values)
        if self.headered is not None:
            return self.headered.encode_matrix(whole)
        self.row_bytes(values.shape[1])
        return NO_HEADER, self.encode_rows(whole).reshape(values.shape[0], -1)

    def _finite(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if values.ndim != 2 or not np.isfinite(values).all():
            raise ModelFileError(f"{self.name}: only a matrix of finite numbers can be encoded")
        return np.ascontiguousarray(values, np.float32)
