"""Error-compensated rounding (GPTQ, Frantar et al., ICLR 2023): each column's error is taken up by later columns.

Minimises ``|| X W^T - X Q^T ||^2`` for inputs X known by their second moments ``H = X^T X``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.quantise.grid import Floats, Grid

BLOCK = 64  # columns whose errors are carried to the rest of the matrix together
DAMPING = 0.01  # of the mean of the diagonal, added to it
ROWS = 8192  # rows at a time: they do not influence each other


def factor(moments: NDArray[np.float64], damping: float = DAMPING) -> NDArray[np.float64]:
    """Upper Cholesky factor of the inverse of the damped ``moments`` [K, K]; what ``round_rows`` carries errors with.

    Columns that were never seen (zero moments) get the mean, so that they are rounded to nearest.
    """
    h = moments.copy()
    diagonal = np.einsum("ii->i", h)
    mean = float(diagonal.mean()) or 1.0
    diagonal[diagonal == 0] = mean
    diagonal += damping * mean
    inverse = np.linalg.inv(np.linalg.cholesky(h))
    upper: NDArray[np.float64] = np.linalg.cholesky(inverse.T @ inverse).T
    return upper


def round_rows(weights: Floats, grid: Grid, upper: NDArray[np.float64], importance: NDArray[np.float64]) -> Floats:
    """Round ``weights`` [N, K] on ``grid``, column by column in order; float32 [N, K] on the grid.

    Groups are fitted to the weights as they stand when their first column comes. ``upper``: see ``factor``;
    ``importance`` is the diagonal of the second moments.
    """
    left = weights.astype(np.float32, copy=True)
    out = np.empty_like(left)
    factors = upper.astype(np.float32)
    n, k = left.shape
    for begin in range(0, k, BLOCK):
        end = min(begin + BLOCK, k)
        errors = np.empty((n, end - begin), np.float32)
        for column in range(begin, end):
            if column % grid.group == 0:
                group = slice(column, column + grid.group)
                current = left[:, group]
                if group.stop > end:  # later blocks have not yet taken up this block's errors
                    current = current.copy()
                    current[:, end - column :] -= (
                        errors[:, : column - begin] @ factors[begin:column, end : group.stop]
                    )
                grid.fit(column // grid.group, current, importance[group])
            out[:, column] = grid.round(column, left[:, column])
            error = (left[:, column] - out[:, column]) / factors[column, column]
            left[:, column:end] -= error[:, None] * factors[column, column:end]
            errors[:, column - begin] = error
        left[:, end:] -= errors @ factors[begin:end, end:]
    return out
