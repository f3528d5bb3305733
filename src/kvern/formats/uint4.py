"""Asymmetric 4-bit codes along one axis: x ~ low + step * code, step and low in float16."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = 15  # the largest code


@dataclass(frozen=True, slots=True)
class Coded:
    """``codes`` uint8 0..15; ``step`` and ``low`` are float32 that float16 holds, with the coded axis of length 1."""

    codes: NDArray[np.uint8]
    step: NDArray[np.float32]
    low: NDArray[np.float32]

    def decode(self) -> NDArray[np.float32]:
        decoded: NDArray[np.float32] = self.low + self.step * self.codes.astype(np.float32)
        return decoded


def encode(values: NDArray[np.float32], axis: int) -> Coded:
    """Codes of the runs along ``axis``; nearest, ties to even.

    step = (max - min) / 15 and low = min are rounded to float16 first, and codes are of what they then are. A run
    that holds something not finite, or too large for float16, gets a NaN step: whatever reads it becomes NaN.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        least, most = values.min(axis=axis, keepdims=True), values.max(axis=axis, keepdims=True)
        low = least.astype(np.float16).astype(np.float32)
        step = ((most - least) * np.float32(1 / LEVELS)).astype(np.float16).astype(np.float32)
        sound = np.isfinite(low) & np.isfinite(step)
        divisor = np.where(sound & (step > 0), step, np.float32(1))
        spread = np.where(sound & (step > 0), values - low, np.float32(0))
        codes = np.clip(np.rint(spread / divisor), 0, LEVELS).astype(np.uint8)
    return Coded(codes, np.where(sound, step, np.float32(np.nan)), np.where(sound, low, np.float32(0)))


def stored(values: NDArray[np.float32], axis: int = -1) -> NDArray[np.float32]:
    """What reading the codes gives back."""
    return encode(values, axis).decode()
