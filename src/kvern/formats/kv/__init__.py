"""KV formats by name. A module is imported when its format is first asked for.

``get`` parses a name: one of ``NAMES``, or ``KEYS/VALUES`` for the keys of one format and the values of another.
"""

from __future__ import annotations

from importlib import import_module

from kvern.core.errors import ConfigError
from kvern.formats.kv_format import KvFormat

NAMES = ("bf16", "kv8", "kv4", "kv4-hadamard", "kv4-token", "f32")


def get(name: str) -> KvFormat:
    """The format called ``name``, as in "kv8" or "kv8/kv4-token". Raises ConfigError with the reason when there is
    none, or when two formats do not go together."""
    parts = name.split("/")
    if len(parts) > 2:
        raise ConfigError(f"KV format {name!r} has {len(parts)} parts; it is one name, or KEYS/VALUES")
    formats = [_named(part) for part in parts]
    if len(formats) == 1 or parts[0] == parts[1]:
        return formats[0]
    keys, values = formats
    if (keys.name == "f32") != (values.name == "f32"):
        raise ConfigError(f"KV format {name!r}: f32 is for the reference back end and goes with f32 only")
    if values.tail and not keys.tail:
        raise ConfigError(
            f"KV format {name!r}: {values.name} keeps recent values in bf16 beside recent keys, and {keys.name} "
            f"keeps no recent keys; take {keys.name}/kv4-token"
        )
    if values.name == "kv4-hadamard":
        raise ConfigError(f"KV format {name!r}: only keys are rotated; take {keys.name}/kv4-token")
    return KvFormat(name, keys.keys, values.values, tail=keys.tail)


def _named(name: str) -> KvFormat:
    if name not in NAMES:
        raise ConfigError(f"KV format {name!r} is not known; known are {', '.join(NAMES)}, and KEYS/VALUES of two")
    found: KvFormat = import_module(f"{__name__}.{name.replace('-', '_')}").FORMAT
    return found
