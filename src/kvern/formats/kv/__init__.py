"""KV formats by name. A module is imported when its format is first asked for."""

from __future__ import annotations

from importlib import import_module

from kvern.core.errors import ConfigError
from kvern.formats.kv_format import KvFormat

NAMES = ("bf16", "kv8", "f32")


def get(name: str) -> KvFormat:
    """The format called ``name``; raises ConfigError when there is none."""
    if name not in NAMES:
        raise ConfigError(f"KV format {name!r} is not known; known are {', '.join(NAMES)}")
    found: KvFormat = import_module(f"{__name__}.{name}").FORMAT
    return found
