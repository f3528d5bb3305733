"""Second moments of a matrix's inputs, from which rounding algorithms know what an error in a weight costs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
ROWS = 1024  # at a time
_LONGEST = 4.0  # times the median length: longer rows are shortened to that


def second_moments(inputs: Floats) -> NDArray[np.float64]:
    """``X^T X / rows`` of float32 [R, K]: float64 [K, K].

    Rows much longer than the others are shortened: the first token of a text can be a thousand times longer than
    the rest, and would otherwise decide everything.
    """
    lengths = np.sqrt(np.square(inputs).sum(axis=1, dtype=np.float64))
    limit = _LONGEST * float(np.median(lengths))
    shares = np.minimum(1.0, limit / np.maximum(lengths, 1e-30)).astype(np.float32) if limit > 0 else None
    total = np.zeros((inputs.shape[1], inputs.shape[1]))
    for begin in range(0, inputs.shape[0], ROWS):
        rows = inputs[begin : begin + ROWS]
        if shares is not None:
            rows = rows * shares[begin : begin + ROWS, None]
        total += rows.T @ rows
    total /= inputs.shape[0]
    return total
