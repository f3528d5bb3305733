"""What a weight format says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvern.core.errors import ModelFileError

Decoder = Callable[[NDArray[np.uint8], int], NDArray[np.float32]]
Encoder = Callable[[NDArray[np.float32]], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """A format of matrices stored row by row, each row in blocks of ``block`` neighbouring columns.

    ``activation`` names the form that inputs are brought to for it: "int8 group 32", "int8 row" or "float32" (see
    ``kvern.formats.activations``). ``row_overhead`` are bytes of a row outside its blocks. ``decode_rows`` takes
    uint8 [rows, row bytes] and the columns, ``encode_rows`` float32 [rows, columns].
    """

    name: str
    block: int
    block_bytes: int
    activation: str
    decode_rows: Decoder
    encode_rows: Encoder
    row_overhead: int = 0

    @property
    def bits_per_weight(self) -> float:
        """Bits of a weight within a block."""
        return 8 * self.block_bytes / self.block

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row; raises ModelFileError when ``columns`` is not a positive multiple of the block."""
        if columns <= 0 or columns % self.block:
            raise ModelFileError(f"{self.name}: rows of {columns} do not divide into blocks of {self.block}")
        return columns // self.block * self.block_bytes + self.row_overhead

    def decode(self, data: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.float32]:
        """uint8 data of all rows (any shape) -> float32 [rows, columns]; raises ModelFileError on a wrong size."""
        expected = rows * self.row_bytes(columns)
        if data.dtype != np.uint8 or data.size != expected:
            raise ModelFileError(f"{self.name}: {rows} x {columns} needs {expected} bytes, not {data.size}")
        # A damaged file may hold infinite scales; what comes of them is seen later, as logits that are not finite.
        with np.errstate(over="ignore", invalid="ignore"):
            values = self.decode_rows(np.ascontiguousarray(data).reshape(rows, -1), columns)
        return values.reshape(rows, columns)

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """float32 [rows, columns], finite -> uint8 [rows, row bytes]: a valid, simple encoding, not the best one."""
        if values.ndim != 2 or not np.isfinite(values).all():
            raise ModelFileError(f"{self.name}: only a matrix of finite numbers can be encoded")
        self.row_bytes(values.shape[1])
        encoded = self.encode_rows(np.ascontiguousarray(values, np.float32))
        return encoded.reshape(values.shape[0], -1)
