"""Reader of GGUF files (versions 2 and 3, little-endian): own, bounds-checked, memory-mapped, executing nothing.

Source of the layout: the GGUF specification in the ggml project (docs/gguf.md). A file is a magic, a version, two
counts, key-value pairs, tensor descriptions, padding, and the tensors. Nothing is trusted: every count is compared
with the bytes that are left before anything is allocated for it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from kvern.core.errors import ModelFileError
from kvern.weights.gguf_values import Cursor, ValueReader
from kvern.weights.mapped_file import MAX_DIMENSIONS, MappedFile, TensorFile, TensorInfo, elements, refuse_overlaps

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_KEY_BYTES = 65535
MAX_TENSOR_NAME_BYTES = 1024
MAX_ALIGNMENT = 1 << 20
DEFAULT_ALIGNMENT = 32
MAX_PARTS = 1024

# Type number in the file -> (name, elements per block, bytes per block).
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
# Known by name only, so that the error can say what the file holds.
UNREAD_TYPES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip

_PART_NAME = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf$")


class GgufFile(TensorFile):
    """An open GGUF model. ``metadata`` maps keys to int, float, bool, str, or lists of them."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One file of a model, parsed."""

    map: MappedFile
    metadata: dict[str, object]
    tensors: list[TensorInfo]


def read(path: str | Path) -> GgufFile:
    """Open a GGUF model; given any part of a split one (``name-00001-of-00003.gguf``), open all its parts.

    Raises ModelFileError, naming the file and what is wrong with it.
    """
    path = Path(path)
    match = _PART_NAME.match(path.name)
    parts: list[_Part] = []
    try:
        if match is None or int(match["count"]) <= 1:
            parts.append(_read_part(path, 0))
            _check_split(parts[0], 0, 1)
        else:
            _read_all_parts(path, match, parts)
        tensors = [info for part in parts for info in part.tensors]
        return GgufFile([part.map for part in parts], parts[0].metadata, tensors)
    except ModelFileError:
        for part in parts:
            part.map.close()
        raise


def is_later_part(path: Path) -> bool:
    """Whether the name is that of the second or a later part of a split model."""
    match = _PART_NAME.match(path.name)
    return match is not None and int(match["part"]) > 1


def _read_all_parts(path: Path, match: re.Match[str], parts: list[_Part]) -> None:
    count = int(match["count"])
    if count > MAX_PARTS:
        raise ModelFileError(f"{path}: says it is one of {count} parts; at most {MAX_PARTS} are read")
    for number in range(count):
        part_path = path.with_name(f"{match['stem']}-{number + 1:05d}-of-{count:05d}.gguf")
        if not part_path.exists():
            raise ModelFileError(f"{part_path}: this part of the split model is missing")
        parts.append(_read_part(part_path, number))
        _check_split(parts[-1], number, count)


def _check_split(part: _Part, number: int, count: int) -> None:
    """What the file says of its place among the parts must agree with its name."""
    stated = (part.metadata.get("split.no", 0), part.metadata.get("split.count", 1) or 1)
    if stated != (number, count):
        raise ModelFileError(
            f"{part.map.path}: says it is part {stated[0]!r} (from 0) of {stated[1]!r}, "
            f"but its name says part {number} of {count}"
        )


def _read_part(path: Path, number: int) -> _Part:
    mapped = MappedFile(path)
    try:
        view = memoryview(mapped.map)
        with view:
            metadata, tensors = _parse(path, view, number)
    except ModelFileError:
        mapped.close()
        raise
    return _Part(mapped, metadata, tensors)


def _parse(path: Path, view: memoryview, number: int) -> tuple[dict[str, object], list[TensorInfo]]:
    cursor = Cursor(view, str(path))
    tensor_count, key_count = _header(cursor)
    metadata = _metadata(cursor, key_count)
    alignment = _alignment(cursor, metadata)
    described = [_tensor(cursor) for _ in range(tensor_count)]
    begin = -(-cursor.at // alignment) * alignment
    tensors = [_place(path, found, begin, alignment, cursor.size, number) for found in described]
    names = {info.name for info in tensors}
    if len(names) != len(tensors):
        raise ModelFileError(f"{path}: two tensors have the same name")
    refuse_overlaps(path, tensors)
    return metadata, tensors


def _header(cursor: Cursor) -> tuple[int, int]:
    """Magic, version, counts -> (tensors, keys), both known to fit the file."""
    if bytes(cursor.take(4, "the magic")) != MAGIC:
        raise cursor.wrong("is not a GGUF file (the first four bytes are not 'GGUF')")
    version = cursor.u32("the version")
    if version not in VERSIONS:
        if version & 0xFFFF == 0 and version:
            raise cursor.wrong("is a big-endian GGUF file; only little-endian files are read")
        raise cursor.wrong(f"is GGUF version {version}; versions {VERSIONS} are read")
    tensors = cursor.u64("the number of tensors")
    keys = cursor.u64("the number of keys")
    cursor.expect_room(tensors, 8 + 4 + 8 + 4 + 8, MAX_TENSORS, "tensors")
    cursor.expect_room(keys, 8 + 4 + 1, MAX_KEYS, "keys")
    return tensors, keys


def _metadata(cursor: Cursor, count: int) -> dict[str, object]:
    reader = ValueReader(cursor)
    metadata: dict[str, object] = {}
    for _ in range(count):
        key = cursor.text("a key", MAX_KEY_BYTES)
        if not key:
            raise cursor.wrong("has an empty key")
        if key in metadata:
            raise cursor.wrong(f"has the key {key!r} twice")
        metadata[key] = reader.value(key)
    return metadata


def _alignment(cursor: Cursor, metadata: dict[str, object]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not 1 <= value <= MAX_ALIGNMENT
        or value & (value - 1)
    ):
        raise cursor.wrong(f"general.alignment is {value!r:.80}, not a power of two up to {MAX_ALIGNMENT}")
    return value


def _tensor(cursor: Cursor) -> TensorInfo:
    """One description; ``offset`` still counts from the beginning of the data."""
    name = cursor.text("a tensor name", MAX_TENSOR_NAME_BYTES)
    what = f"{cursor.path}: tensor {name!r}"
    dimensions = cursor.u32("the number of dimensions")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ModelFileError(f"{what} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are read")
    shape = struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions, "dimensions"))[::-1]
    kind = cursor.u32("the tensor type")
    offset = cursor.u64("the tensor offset")
    if kind not in TENSOR_TYPES:
        label = f"{UNREAD_TYPES[kind]} ({kind})" if kind in UNREAD_TYPES else str(kind)
        read = ", ".join(entry[0] for entry in TENSOR_TYPES.values())
        raise ModelFileError(f"{what} has type {label}, which is not supported; supported are {read}")
    format_name, block, block_bytes = TENSOR_TYPES[kind]
    count = elements(shape, what)
    if count == 0:
        raise ModelFileError(f"{what} has shape {shape}: a dimension is zero")
    if shape[-1] % block:
        raise ModelFileError(f"{what}: rows of {shape[-1]} do not divide into {format_name} blocks of {block}")
    return TensorInfo(name, format_name, shape, offset, count // block * block_bytes)


def _place(path: Path, found: TensorInfo, begin: int, alignment: int, size: int, number: int) -> TensorInfo:
    """Turn the offset into one from the beginning of the file, and check that the tensor lies inside."""
    if found.offset % alignment:
        raise ModelFileError(f"{path}: tensor {found.name!r} begins at {found.offset}, not a multiple of {alignment}")
    if found.offset > size or begin + found.offset + found.nbytes > size:
        raise ModelFileError(
            f"{path}: tensor {found.name!r} ends {begin + found.offset + found.nbytes - size} bytes after the end "
            f"of the file ({size} bytes): the file is truncated or damaged"
        )
    return TensorInfo(found.name, found.format, found.shape, begin + found.offset, found.nbytes, number)
