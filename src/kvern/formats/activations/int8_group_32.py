"""int8 codes with a scale for each group of 32 columns (``kvern.formats.int8_codes``)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.formats import int8_codes
from kvern.formats.activation_format import ActivationFormat


def rounded(x: NDArray[np.float32], header: NDArray[np.uint8]) -> NDArray[np.float32]:
    codes, scales = int8_codes.int8_group_32(x)
    return codes.astype(np.float32) * np.repeat(scales, int8_codes.GROUP, axis=-1)


FORMAT = ActivationFormat("int8 group 32", 8, rounded)
