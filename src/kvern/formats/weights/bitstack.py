"""BITSTACK: a matrix as a sum of blocks, any first few of which are a model of their own (Wang et al. 2025).

    W = sum over blocks t of S_t * (U_t @ V_t)

``S_t`` is a sign a weight, ``U_t`` [rows, rank] and ``V_t`` [rank, columns] are half floats. Header: ``blocks`` and
``rank`` (uint32), for each block its position in the load order of the whole model (uint32, ascending within a
matrix), then ``V`` of every block as [columns, rank]. A row: for each block columns / 8 bytes of signs (bit i of byte
j is column 8 j + i; 1 is minus), then ``U`` of the row.

Encoding is the paper's absolute-value decomposition: a block takes the signs of what is left and the best rank-k
approximation of its magnitudes. With a scale for each column (how large its inputs are), columns are multiplied by it
first and ``V`` divided by it afterwards, so that errors are spent where inputs are small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from kvern.core.errors import ModelFileError
from kvern.formats.blocks import Bytes, Floats
from kvern.formats.weight_format import HeaderedRows, WeightFormat

NAME = "BITSTACK"
BLOCKS, RANK = 16, 16
MOST_BLOCKS = HIGHEST_RANK = 64
_LARGEST = np.float32(60000)  # of a half float, with room for rounding
_OVERSAMPLING, _ROUNDS = 8, 2  # of the randomised subspace iteration (Halko, Martinsson & Tropp 2011)


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """A header, taken apart. ``positions`` uint32 [blocks]; ``right`` half [blocks, columns, rank]: the ``V``."""

    blocks: int
    rank: int
    positions: NDArray[np.uint32]
    right: NDArray[np.float16]

    def header(self) -> Bytes:
        head = np.array([self.blocks, self.rank, *self.positions.tolist()], "<u4").view(np.uint8)
        return np.concatenate([head, np.ascontiguousarray(self.right).astype("<f2").view(np.uint8).reshape(-1)])

    def with_positions(self, positions: list[int]) -> Bytes:
        """The same header with another load order."""
        return Stack(self.blocks, self.rank, np.array(positions, np.uint32), self.right).header()


def split_header(header: Bytes, columns: int) -> Stack:
    """Raises ModelFileError for a header that is not well formed or is of another number of columns."""
    if header.size < 8:
        raise ModelFileError(f"{NAME}: its header has {header.size} bytes; 8 or more are needed")
    blocks, rank = np.ascontiguousarray(header[:8]).view("<u4").tolist()
    if not (1 <= blocks <= MOST_BLOCKS and 1 <= rank <= HIGHEST_RANK):
        raise ModelFileError(f"{NAME}: {blocks} blocks of rank {rank}; each may be 1 to {MOST_BLOCKS}")
    expected = 8 + 4 * blocks + 2 * blocks * rank * columns
    if header.size != expected:
        raise ModelFileError(
            f"{NAME}: {blocks} blocks of rank {rank} over {columns} columns have a header of {expected} bytes, "
            f"not {header.size}"
        )
    positions = np.ascontiguousarray(header[8 : 8 + 4 * blocks]).view("<u4").astype(np.uint32)
    if (np.diff(positions.astype(np.int64)) <= 0).any():
        raise ModelFileError(f"{NAME}: positions of blocks in the load order do not ascend")
    right = np.ascontiguousarray(header[8 + 4 * blocks :]).view("<f2").reshape(blocks, columns, rank)
    return Stack(blocks, rank, positions, right)


def block_memory(rows: int, columns: int, rank: int) -> int:
    """Bytes of one block in memory, as native/formats/bitstack.cpp lays it out: tiles of 16 rows, then V."""
    return -(-rows // 16) * (2 * columns + 32 * rank) + 2 * rank * columns


def row_bytes(columns: int, header: Bytes) -> int:
    stack = split_header(header, columns)
    return stack.blocks * _block_row(columns, stack.rank)


def _block_row(columns: int, rank: int) -> int:
    return columns // 8 + 2 * rank


def _signed_products(part: Bytes, columns: int, right: NDArray[np.float16]) -> Floats:
    """One block of rows uint8 [rows, bytes of a row and block] as numbers: float32 [rows, columns]."""
    minus = np.unpackbits(part[:, : columns // 8], axis=1, bitorder="little").astype(bool)
    left = np.ascontiguousarray(part[:, columns // 8 :]).view("<f2").astype(np.float32)
    product: Floats = left @ right.astype(np.float32).T
    return np.where(minus, -product, product)


def decode_rows(data: Bytes, columns: int, header: Bytes) -> Floats:
    stack = split_header(header, columns)
    parts = data.reshape(data.shape[0], stack.blocks, -1)
    values = np.zeros((data.shape[0], columns), np.float32)
    for t in range(stack.blocks):
        values += _signed_products(parts[:, t], columns, stack.right[t])
    return values


def first_blocks(header: Bytes, data: Bytes, columns: int, blocks: int) -> tuple[Bytes, Bytes]:
    """Header and rows uint8 [rows, row bytes] of the same matrix cut down to its first ``blocks`` blocks."""
    stack = split_header(header, columns)
    if not 1 <= blocks <= stack.blocks:
        raise ModelFileError(f"{NAME}: {blocks} blocks wanted of {stack.blocks}")
    less = Stack(blocks, stack.rank, stack.positions[:blocks], stack.right[:blocks])
    return less.header(), np.ascontiguousarray(data[:, : blocks * _block_row(columns, stack.rank)])


def stacked(
    values: Floats, blocks: int = BLOCKS, rank: int = RANK, column_scale: Floats | None = None
) -> tuple[Bytes, Bytes]:
    """float32 [rows, columns], finite -> header, uint8 [rows, row bytes].

    ``column_scale`` float32 [columns]: how large the inputs of each column are (their root mean square). Raises
    ModelFileError for impossible numbers of blocks, ranks or columns.
    """
    columns = values.shape[1]
    if columns % 8 or not (1 <= blocks <= MOST_BLOCKS and 1 <= rank <= HIGHEST_RANK):
        raise ModelFileError(f"{NAME}: {blocks} blocks of rank {rank} over {columns} columns are not possible")
    scale = _usable_scale(column_scale, columns)
    left_over = values * scale
    right = np.zeros((blocks, columns, rank), np.float16)
    parts = []
    for t in range(blocks):
        minus = left_over < 0
        u, v = _factors(np.abs(left_over), rank, t)
        left, right[t] = _halves(u), _halves(v / scale[:, None])
        product = left.astype(np.float32) @ (right[t].astype(np.float32) * scale[:, None]).T
        left_over -= np.where(minus, -product, product)
        signs = np.packbits(minus, axis=1, bitorder="little")
        parts.append(np.concatenate([signs, left.astype("<f2").view(np.uint8)], axis=1))
    # Level by level; within a level matrices come in the order of use, early layers first.
    stack = Stack(blocks, rank, np.arange(blocks, dtype=np.uint32), right)
    return stack.header(), np.concatenate(parts, axis=1)


def _usable_scale(column_scale: Floats | None, columns: int) -> Floats:
    """Around 1, and never so small that a column is given up."""
    if column_scale is None:
        return np.ones(columns, np.float32)
    if column_scale.shape != (columns,) or not np.isfinite(column_scale).all() or (column_scale < 0).any():
        raise ModelFileError(f"{NAME}: the scale of columns must be {columns} numbers that are not negative")
    mean = float(column_scale.mean())
    if mean <= 0:
        return np.ones(columns, np.float32)
    usable: Floats = np.maximum(column_scale / np.float32(mean), np.float32(0.01)).astype(np.float32)
    return usable


def _halves(values: Floats) -> NDArray[np.float16]:
    return np.clip(values, -_LARGEST, _LARGEST).astype(np.float16)


def _factors(magnitudes: Floats, rank: int, seed: int) -> tuple[Floats, Floats]:
    """U float32 [rows, rank] and V [columns, rank] with ``U @ V.T`` near the best approximation of that rank."""
    rows, columns = magnitudes.shape
    width = min(rank + _OVERSAMPLING, rows, columns)
    start = np.random.default_rng(seed).standard_normal((columns, width), dtype=np.float32)
    basis, _ = np.linalg.qr(magnitudes @ start)
    for _ in range(_ROUNDS):
        other, _ = np.linalg.qr(magnitudes.T @ basis)
        basis, _ = np.linalg.qr(magnitudes @ other)
    u, sizes, vt = np.linalg.svd(basis.T @ magnitudes, full_matrices=False)
    kept = min(rank, width)
    roots = np.sqrt(sizes[:kept])
    left, right = np.zeros((rows, rank), np.float32), np.zeros((columns, rank), np.float32)
    left[:, :kept] = (basis @ u[:, :kept]) * roots
    right[:, :kept] = vt[:kept].T * roots
    return left, right


def _no_plain_rows(*_: object) -> NoReturn:
    raise ModelFileError(f"{NAME}: rows are coded with the header of their matrix")


# `block_bytes`: the signs of 8 columns in the usual number of blocks; U and V come on top.
_CODING = HeaderedRows(row_bytes, decode_rows, stacked)
FORMAT = WeightFormat(
    NAME, 8, BLOCKS, ("float32",), _no_plain_rows, _no_plain_rows, headered=_CODING
)  # fmt: skip
