"""A minimal writer of safetensors files, so that tests need no other package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def safetensors_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """``tensors``: name -> (element type such as "F32", shape, bytes)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + b"".join(data for _, _, data in tensors.values())


def write(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> Path:
    path.write_bytes(safetensors_bytes(tensors))
    return path
