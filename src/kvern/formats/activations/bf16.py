"""Inputs rounded to bfloat16, to nearest even."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.formats import bfloat16
from kvern.formats.activation_format import ActivationFormat


def rounded(x: NDArray[np.float32], header: NDArray[np.uint8]) -> NDArray[np.float32]:
    return bfloat16.from_bits(bfloat16.to_bits(x))


FORMAT = ActivationFormat("bf16", 16, rounded)
