"""A minimal writer of GGUF files, so that tests need no other package."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TYPE_NUMBERS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
    "BF16": 30,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class RawTensor:
    """``shape`` in C order, ``data`` the bytes as they stand in the file; ``kind`` a number of the specification."""

    name: str
    kind: int
    shape: tuple[int, ...]
    data: bytes


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def scalar(value: bool | int | float | str) -> tuple[int, bytes]:
    """Type number and bytes. Integers become uint32 where they fit, floats float32."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        if 0 <= value < 1 << 32:
            return 4, struct.pack("<I", value)
        return 11, struct.pack("<q", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    return 8, text(value)


def value_bytes(value: object) -> bytes:
    """Type number and bytes of a scalar, a text, or a list of one kind of them."""
    if isinstance(value, np.ndarray):
        codes = {np.dtype("<i4"): 5, np.dtype("<f4"): 6, np.dtype("<u4"): 4, np.dtype("<u1"): 0}
        return struct.pack("<IIQ", 9, codes[value.dtype], value.size) + value.tobytes()
    if isinstance(value, list):
        items = [scalar(item) for item in value]
        kind = items[0][0] if items else 4
        return struct.pack("<IIQ", 9, kind, len(items)) + b"".join(raw for _, raw in items)
    kind, raw = scalar(value)
    return struct.pack("<I", kind) + raw


def gguf_bytes(
    metadata: Mapping[str, object], tensors: list[RawTensor], version: int = 3, alignment: int = 32
) -> bytes:
    """A whole file. ``general.alignment`` is not written by itself."""
    head = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    head += [text(key) + value_bytes(value) for key, value in metadata.items()]
    body: list[bytes] = []
    at = 0
    for tensor in tensors:
        dimensions = tensor.shape[::-1]
        head.append(
            text(tensor.name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, tensor.kind, at)
        )
        padding = -len(tensor.data) % alignment
        body.append(tensor.data + bytes(padding))
        at += len(tensor.data) + padding
    prefix = b"".join(head)
    return prefix + bytes(-len(prefix) % alignment) + b"".join(body)


def write(path: Path, metadata: Mapping[str, object], tensors: list[RawTensor], alignment: int = 32) -> Path:
    path.write_bytes(gguf_bytes(metadata, tensors, alignment=alignment))
    return path
