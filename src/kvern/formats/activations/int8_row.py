"""int8 codes with one scale a row (``kvern.formats.int8_codes``)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.formats import int8_codes
from kvern.formats.activation_format import ActivationFormat


def rounded(x: NDArray[np.float32], header: NDArray[np.uint8]) -> NDArray[np.float32]:
    codes, scales = int8_codes.int8_row(x)
    return codes.astype(np.float32) * scales[..., None]


FORMAT = ActivationFormat("int8 row", 8, rounded)
