"""Rounding to the nearest value of the grid, the range of each group chosen by a search or taken as it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.quantise.grid import Floats, Grid


def round_rows(weights: Floats, grid: Grid, importance: NDArray[np.float64]) -> Floats:
    """Round ``weights`` [N, K] on ``grid``; ``importance`` [K] weighs columns in its search. float32 [N, K]."""
    for index in range(weights.shape[1] // grid.group):
        columns = slice(index * grid.group, (index + 1) * grid.group)
        grid.fit(index, weights[:, columns], importance[columns])
    for column in range(weights.shape[1]):
        grid.round(column, weights[:, column])
    return grid.values()
