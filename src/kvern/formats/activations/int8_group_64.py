"""int8 codes, within +-127, with a scale for each group of 64 columns (``kvern.formats.group_codes``)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.formats import group_codes
from kvern.formats.activation_format import ActivationFormat


def rounded(x: NDArray[np.float32], header: NDArray[np.uint8]) -> NDArray[np.float32]:
    return group_codes.rounded(x, 127)


FORMAT = ActivationFormat("int8 group 64", 8, rounded)
