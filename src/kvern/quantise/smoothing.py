"""Which scale to fold at a site, so that rounding inputs and weights hurts the outputs least.

Scales of the family ``max|X_j| ** a / max|W_j| ** b`` are tried (SmoothQuant, Xiao et al., 2023: b = 1 - a; AWQ, Lin
et al., 2024: b = 0), each by the squared error of the site's outputs on a sample of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
CANDIDATES = ((0.3, 0.0), (0.5, 0.0), (0.7, 0.0), (0.5, 0.5), (0.65, 0.35), (0.8, 0.2))
_RANGE = 1e-3  # scales are kept within this and its inverse


@dataclass(frozen=True, slots=True)
class Rounding:
    """How a format rounds, as the search sees it: inputs [R, K] and weights [N, K] to what a product sees of them."""

    inputs: Callable[[Floats], Floats]
    weights: Callable[[Floats], Floats]


def candidate(inputs: Floats, weights: Floats, powers: tuple[float, float]) -> Floats:
    """``inputs`` and ``weights``: the largest magnitude of each channel, float32 [K]. Geometric mean 1."""
    floor_x, floor_w = (np.float32(max(1e-5 * float(found.max()), 1e-30)) for found in (inputs, weights))
    x, w = np.log(np.maximum(inputs, floor_x)), np.log(np.maximum(weights, floor_w))
    exponent = powers[0] * x - powers[1] * w
    scale = np.exp(exponent - exponent.mean())
    found: Floats = np.clip(scale, _RANGE, 1 / _RANGE).astype(np.float32)
    return found


def error(sample: Floats, matrices: Sequence[Floats], scale: Floats, rounding: Rounding) -> float:
    """Error of the outputs when inputs are divided and columns multiplied by ``scale`` [K] and both rounded.

    Squared error of each row over its square, added over rows and matrices: the few rows that hold enormous values
    (the first token of a text, often) count no more than others.
    """
    seen = rounding.inputs(np.ascontiguousarray(sample / scale))
    total = 0.0
    for matrix in matrices:
        wanted = sample @ matrix.T
        missed = np.square(seen @ rounding.weights(matrix * scale).T - wanted).sum(axis=1)
        total += float((missed / (np.square(wanted).sum(axis=1) + np.float32(1e-20))).sum(dtype=np.float64))
    return total


def search(
    sample: Floats,
    matrices: Sequence[Floats],
    rounding: Rounding,
    spread: Callable[[Floats], Floats] = lambda scale: scale,
    gather: Callable[[Floats], Floats] = lambda channels: channels,
) -> Floats | None:
    """The best scale [channels of the maker], None when leaving the site as it is is best.

    ``sample`` [R, K] of inputs; ``gather`` takes channels of the consumers [K] to the maker's, ``spread`` back.
    """
    largest_x = gather(np.abs(sample).max(axis=0))
    largest_w = gather(np.max([np.abs(matrix).max(axis=0) for matrix in matrices], axis=0))
    best, least = None, error(sample, matrices, np.ones(sample.shape[1], np.float32), rounding)
    for powers in CANDIDATES:
        scale = candidate(largest_x, largest_w, powers)
        found = error(sample, matrices, spread(scale), rounding)
        if found < least:
            best, least = scale, found
    return best
