"""Reader of safetensors files: own, bounds-checked, memory-mapped, executing nothing.

Source of the layout: the safetensors format description (huggingface/safetensors, README). A file is the length of
a header (u64, little-endian), the header (a JSON object), and the tensors without gaps. A model in several files has
an index (``model.safetensors.index.json``) that maps tensor names to file names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvern.core.errors import ModelFileError
from kvern.weights.mapped_file import MappedFile, TensorFile, TensorInfo, elements, refuse_overlaps

MAX_HEADER_BYTES = 100 * 1000 * 1000
MAX_INDEX_BYTES = MAX_HEADER_BYTES
MAX_TENSORS = 1 << 18
MAX_SHARDS = 4096
MAX_RANK = 8  # dimensions; what is read as a matrix has two, but a file may hold others
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


class SafetensorsFile(TensorFile):
    """An open model. ``metadata`` is the ``__metadata__`` of the first file: texts."""


def read(path: str | Path) -> SafetensorsFile:
    """Open a safetensors file, an index, or a folder that has one of them.

    Raises ModelFileError, naming the file and what is wrong with it; pickled weights are refused.
    """
    path = Path(path)
    refuse_pickle(path)
    if path.is_dir():
        path = _in_folder(path)
    if path.name.endswith(".json"):
        return _read_sharded(path)
    mapped, metadata, tensors = _read_file(path, 0)
    return SafetensorsFile([mapped], metadata, tensors)


def refuse_pickle(path: Path) -> None:
    """Raise ModelFileError for a kind of file that runs code when it is loaded."""
    if path.suffix.lower() in PICKLES:
        raise ModelFileError(
            f"{path}: is a pickled checkpoint; loading one runs whatever code its maker put in it, so kvern does not "
            "read them. Use a safetensors or GGUF file of the same model"
        )


def _in_folder(folder: Path) -> Path:
    for name in (INDEX_FILE, SINGLE_FILE):
        if (folder / name).exists():
            return folder / name
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    for pickle in sorted(folder.iterdir()):
        refuse_pickle(pickle)
    raise ModelFileError(f"{folder}: has neither {INDEX_FILE} nor {SINGLE_FILE}")


def _read_file(path: Path, part: int) -> tuple[MappedFile, dict[str, object], list[TensorInfo]]:
    mapped = MappedFile(path)
    try:
        metadata, tensors = _parse(mapped, part)
    except ModelFileError:
        mapped.close()
        raise
    return mapped, metadata, tensors


def _parse(mapped: MappedFile, part: int) -> tuple[dict[str, object], list[TensorInfo]]:
    path, size = mapped.path, mapped.size
    length = int.from_bytes(mapped.map[:8], "little")
    if size < 8 or length > size - 8:
        raise ModelFileError(f"{path}: its header claims {length} bytes of a file of {size}: truncated or damaged")
    if length > MAX_HEADER_BYTES:
        raise ModelFileError(f"{path}: its header claims {length} bytes; at most {MAX_HEADER_BYTES} are read")
    header = _json_object(path, mapped.map[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ModelFileError(f"{path}: __metadata__ is not an object of texts")
    if len(header) > MAX_TENSORS:
        raise ModelFileError(f"{path}: has {len(header)} tensors; at most {MAX_TENSORS} are read")
    begin = 8 + length
    tensors = [_tensor(path, name, entry, begin, size) for name, entry in header.items()]
    if part:
        tensors = [TensorInfo(t.name, t.format, t.shape, t.offset, t.nbytes, part) for t in tensors]
    refuse_overlaps(path, tensors)
    if sum(info.nbytes for info in tensors) != size - begin:
        raise ModelFileError(f"{path}: its tensors do not cover its data: there are gaps or bytes after the end")
    return metadata, tensors


def _tensor(path: Path, name: str, entry: object, begin: int, size: int) -> TensorInfo:
    what = f"{path}: tensor {name!r:.200}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError(f"{what} is not described by exactly dtype, shape and data_offsets")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ModelFileError(f"{what} has the type {dtype!r:.80}; known are {', '.join(ITEM_BYTES)}")
    shape = _naturals(entry["shape"], MAX_RANK)
    if shape is None:
        raise ModelFileError(f"{what} has no proper shape (up to {MAX_RANK} whole numbers)")
    offsets = _naturals(entry["data_offsets"], 2)
    if offsets is None or len(offsets) != 2:
        raise ModelFileError(f"{what} has no proper data_offsets (two whole numbers)")
    nbytes = elements(shape, what) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != nbytes:
        raise ModelFileError(
            f"{what} of shape {shape} and type {dtype} needs {nbytes} bytes, not {offsets[1] - offsets[0]}"
        )
    if begin + offsets[1] > size:
        raise ModelFileError(f"{what} ends after the end of the file: truncated or damaged")
    return TensorInfo(name, dtype, shape, begin + offsets[0], nbytes)


def _naturals(value: object, most: int) -> tuple[int, ...] | None:
    """A JSON list of up to ``most`` whole numbers from 0, else None."""
    if not isinstance(value, list) or len(value) > most:
        return None
    if not all(type(item) is int and 0 <= item < 1 << 63 for item in value):
        return None
    return tuple(value)


def _json_object(path: Path, raw: bytes) -> dict[str, Any]:
    """Parse an object, refusing duplicate keys, NaN and anything that is not JSON."""

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a key is there twice")
        return made

    def no_constant(text: str) -> object:
        raise ValueError(f"{text} is not JSON")

    try:
        parsed = json.loads(str(raw, "utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: its JSON cannot be read ({str(error)[:200]})") from None
    if not isinstance(parsed, dict):
        raise ModelFileError(f"{path}: its JSON is not an object")
    return parsed


def _read_sharded(index: Path) -> SafetensorsFile:
    with_index = MappedFile(index)
    try:
        if with_index.size > MAX_INDEX_BYTES:
            raise ModelFileError(f"{index}: is larger than {MAX_INDEX_BYTES} bytes")
        weight_map = _json_object(index, with_index.map[:]).get("weight_map")
    finally:
        with_index.close()
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ModelFileError(f"{index}: weight_map is not an object of file names")
    names = sorted(set(weight_map.values()))
    if not 1 <= len(names) <= MAX_SHARDS:
        raise ModelFileError(f"{index}: names {len(names)} files; 1 to {MAX_SHARDS} are read")
    maps: list[MappedFile] = []
    try:
        return _join_shards(index, names, weight_map, maps)
    except ModelFileError:
        for mapped in maps:
            mapped.close()
        raise


def _join_shards(
    index: Path, names: list[str], weight_map: dict[str, str], maps: list[MappedFile]
) -> SafetensorsFile:
    """Open the shards into ``maps``; the index and the shards must agree on every tensor."""
    tensors: list[TensorInfo] = []
    metadata: dict[str, object] = {}
    for part, name in enumerate(names):
        mapped, said, found = _read_file(_shard_path(index, name), part)
        maps.append(mapped)
        metadata = metadata or said
        for info in found:
            if weight_map.get(info.name) != name:
                raise ModelFileError(f"{mapped.path}: holds {info.name!r:.200}, which {index.name} does not say")
        tensors.extend(found)
    missing = weight_map.keys() - {info.name for info in tensors}
    if missing:
        raise ModelFileError(f"{index}: {min(missing)!r:.200} is in none of the files")
    return SafetensorsFile(maps, metadata, tensors)


def _shard_path(index: Path, name: str) -> Path:
    """The shard beside the index. A link may not lead out of the folder, except to the ``blobs`` of the hub's own
    cache layout (``snapshots/REVISION/name`` -> ``blobs/HASH``)."""
    folder = index.parent
    if not name.endswith(".safetensors") or name != Path(name).name or "\\" in name or "\0" in name:
        raise ModelFileError(f"{index}: {name!r:.200} is not the name of a safetensors file in this folder")
    target = (folder / name).resolve()
    allowed = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        allowed.append(folder.resolve().parent.parent / "blobs")
    if target.parent not in allowed:
        raise ModelFileError(f"{folder / name}: leads out of the model's folder")
    return folder / name
