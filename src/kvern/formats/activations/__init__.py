"""Activation formats by name: the forms that inputs of a matrix product are brought to. One file each."""

from __future__ import annotations

from importlib import import_module

from kvern.core.errors import ConfigError
from kvern.formats.activation_format import ActivationFormat

# What it is called, and its file.
FILES = {
    "float32": "float32",
    "bf16": "bf16",
    "int8 group 32": "int8_group_32",
    "int8 row": "int8_row",
    "int8 group 64": "int8_group_64",
    "int6 group 64": "int6_group_64",
    "mixed 4/8": "mixed_4_8",
    "bit planes": "bit_planes",
    "bit planes 1": "bit_planes_1",
    "bit planes 3": "bit_planes_3",
    "bit planes 4": "bit_planes_4",
}


def get(name: str) -> ActivationFormat:
    """The format called ``name``; raises ConfigError when there is none."""
    if name not in FILES:
        raise ConfigError(f"activation format {name!r} is not known; known are {', '.join(FILES)}")
    found: ActivationFormat = import_module(f"{__name__}.{FILES[name]}").FORMAT
    return found
