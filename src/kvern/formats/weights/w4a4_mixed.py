"""W4A4_MIXED (COMET): 64 columns in 34 bytes: half float s, 32 bytes of nibbles. Weight = s * (code - 8).

Columns stand in the order of the matrix's header (``kvern.formats.mixed_header``), which also says for which groups
of 64 the inputs keep 8 bits; the others are brought to 4. Rows are stored permuted and decoded in their own order.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from kvern.core.errors import ModelFileError
from kvern.formats import group_codes, layout, mixed_header
from kvern.formats.blocks import Bytes, Floats, half, half_bytes, in_blocks, nearest, symmetric_step
from kvern.formats.weight_format import HeaderedRows, WeightFormat

BITS, ZERO = 4, 8
BLOCK_BYTES = group_codes.block_bytes(BITS)
PLANES = layout.plane_widths(BITS)


def row_bytes(columns: int, header: Bytes) -> int:
    mixed_header.parse(columns, header)
    return columns // group_codes.GROUP * BLOCK_BYTES


def decode_rows(data: Bytes, columns: int, header: Bytes) -> Floats:
    codes, scales = group_codes.unpack_rows(in_blocks(data, BLOCK_BYTES), PLANES)
    permuted = (scales * (codes - np.int16(ZERO)).astype(np.float32)).reshape(-1, columns)
    values = np.empty_like(permuted)
    values[:, mixed_header.parse(columns, header)[0]] = permuted
    return values


def encode_rows(values: Floats, header: Bytes) -> Bytes:
    """float32 [rows, columns] in their own order -> uint8 [rows, row bytes] in the header's."""
    columns = mixed_header.parse(values.shape[1], header)[0]
    block = np.ascontiguousarray(values[:, columns]).reshape(-1, group_codes.GROUP)
    scales = half(half_bytes(symmetric_step(block, ZERO)), 0)
    codes = (nearest(block, scales, -ZERO, ZERO - 1) + ZERO).astype(np.uint8)
    return group_codes.pack_rows(codes, scales, PLANES).reshape(values.shape[0], -1)


def encode_matrix(values: Floats) -> tuple[Bytes, Bytes]:
    if values.shape[1] % group_codes.GROUP:
        raise ModelFileError(
            f"W4A4_MIXED: rows of {values.shape[1]} do not divide into blocks of {group_codes.GROUP}"
        )
    header = mixed_header.plain_header(values.shape[1])
    return header, encode_rows(values, header)


def _without_header(*_: object) -> NoReturn:
    raise ModelFileError("W4A4_MIXED: rows of this format are read and made with the matrix's header")


FORMAT = WeightFormat(
    "W4A4_MIXED",
    group_codes.GROUP,
    BLOCK_BYTES,
    ("mixed 4/8", "float32"),
    _without_header,
    _without_header,
    headered=HeaderedRows(row_bytes, decode_rows, encode_matrix, mixed_header.plain_header, encode_rows),
)
