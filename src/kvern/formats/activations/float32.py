"""Inputs as they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.formats.activation_format import ActivationFormat


def rounded(x: NDArray[np.float32], header: NDArray[np.uint8]) -> NDArray[np.float32]:
    return x


FORMAT = ActivationFormat("float32", 32, rounded)
