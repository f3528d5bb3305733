"""Orthonormal Hadamard rotation of vectors, block by block (SAW-INT4; kv-attention-quantization section 13)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LARGEST = 128


def order_of(dim: int) -> int:
    """The largest power of two that divides ``dim``, up to 128."""
    return math.gcd(dim, LARGEST)


def rotate(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [..., dim] -> the same shape. It is its own inverse: rotating twice gives the vectors back."""
    dim = vectors.shape[-1]
    order, x = order_of(dim), vectors
    width = 1
    while width < order:
        pairs = x.reshape(*vectors.shape[:-1], dim // (2 * width), 2, width)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([first + second, first - second], axis=-2)
        width *= 2
    rotated: NDArray[np.float32] = x.reshape(vectors.shape) * np.float32(1 / math.sqrt(order))
    return rotated
