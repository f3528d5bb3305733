"""Weight formats by name. A module is imported when its format is first asked for."""

from __future__ import annotations

from importlib import import_module

from kvern.core.errors import ModelFileError
from kvern.formats.weight_format import WeightFormat

NAMES = (
    "F32",
    "F16",
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "W8A8",
    "QOQ",
    "W6",
    "W4A4_MIXED",
    "W4A16",
    "BITSTACK",
    *(f"BIPOLAR{bits}" for bits in range(1, 9)),
)


def get(name: str) -> WeightFormat:
    """The format called ``name``, in either case, ``-`` for ``_``; raises ModelFileError when there is none."""
    upper = name.upper().replace("-", "_")
    if upper not in NAMES:
        raise ModelFileError(f"weight format {name!r} is not known; known are {', '.join(NAMES)}")
    found: WeightFormat = import_module(f"{__name__}.{upper.lower()}").FORMAT
    return found
