"""Rounding grids by the name of their weight format; a module is imported when its format is first asked for."""

from __future__ import annotations

from importlib import import_module

from kvern.core.errors import ConfigError
from kvern.quantise.grid import GridFormat

_FILES = ("Q4_0", "Q4_1", "Q8_0", "QOQ", "W4A16", "W6", "W8A8")
_BIPOLAR = {f"BIPOLAR{bits}": bits for bits in range(2, 9)}
NAMES = (*_FILES, *_BIPOLAR)


def canonical(name: str) -> str:
    """Weight format names are known in either case, with ``-`` for ``_``."""
    return name.upper().replace("-", "_")


def has(name: str) -> bool:
    """Whether the format called ``name`` has a grid; others are encoded plainly."""
    return canonical(name) in NAMES


def get(name: str) -> GridFormat:
    """Raises ConfigError for a format without one."""
    found = canonical(name)
    if found not in NAMES:
        raise ConfigError(
            f"weights cannot be rounded to {name!r} with errors carried on; they can to {', '.join(NAMES)}"
        )
    if found in _BIPOLAR:
        made: GridFormat = import_module(f"{__name__}.bipolar").grid(_BIPOLAR[found])
        return made
    grid: GridFormat = import_module(f"{__name__}.{found.lower()}").GRID
    return grid
