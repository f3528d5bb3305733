"""What an activation format says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rounding = Callable[[NDArray[np.float32], NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class ActivationFormat:
    """``rounded`` takes float32 rows [R, K] and the header of the weight they meet, and returns what the product sees
    of them: float32 [R, K]. ``uses_header``: whether it looks at the header. ``name`` is the one that native code
    knows too (native/include/linear.h)."""

    name: str
    bits: float  # of a code, without scales
    rounded: Rounding
    uses_header: bool = False
