"""The values that the weights of a matrix may take, as rounding algorithms see a format: an affine grid per group.

Weight = step * code + low, code a whole number in ``0 .. levels``. Every integer weight format of kvern is of this
kind; a format's file in ``kvern.quantise.grids`` says how steps and lows are rounded to what it can store, and how
codes become rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Codes = NDArray[np.uint8]

# What the range of a group is shrunk to in the search for the range with the least error.
SHRINKS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 0.65, 0.6)
NO_SEARCH = (1.0,)


class GridFormat(Protocol):
    """One weight format's part of rounding. ``levels`` is the highest code."""

    @property
    def name(self) -> str: ...

    @property
    def levels(self) -> int: ...

    def group(self, columns: int) -> int:
        """Columns that share a step and a low; divides ``columns``."""

    def row_parameters(self, weights: Floats) -> Floats:
        """What is fixed for whole rows before groups are fitted, float32 [N, P]; P may be 0."""

    def parameters(self, low: Floats, high: Floats, rows: Floats) -> tuple[Floats, Floats]:
        """(step, low), float32 [N], as the format stores them, for values between ``low`` and ``high`` [N]."""

    def pack(self, codes: Codes, steps: Floats, lows: Floats, rows: Floats) -> Bytes:
        """codes uint8 [N, K], steps and lows float32 [N, groups], ``rows`` of ``row_parameters`` -> rows uint8."""


class Grid:
    """The grid of N rows by K columns while they are rounded: parameters are fitted group by group, codes kept.

    ``shrinks``: the shares of a group's range to try; the one with the least squared error, weighted by the
    importance of each column, is taken for each row.
    """

    def __init__(self, form: GridFormat, weights: Floats, shrinks: Sequence[float] = SHRINKS) -> None:
        n, k = weights.shape
        self.group = form.group(k)
        self._form, self._shrinks = form, shrinks
        self._rows = form.row_parameters(weights)
        self._steps = np.zeros((n, k // self.group), np.float32)
        self._lows = np.zeros_like(self._steps)
        self._codes = np.zeros((n, k), np.uint8)

    def fit(self, index: int, values: Floats, importance: NDArray[np.float64]) -> None:
        """Choose step and low of group ``index`` for ``values`` [N, group], each column weighed by ``importance``."""
        low, high = np.minimum(values.min(axis=1), 0), np.maximum(values.max(axis=1), 0)
        best = np.full(values.shape[0], np.inf)
        weight = importance.astype(np.float32)
        for shrink in self._shrinks:
            share = np.float32(shrink)
            step, zero = self._form.parameters(low * share, high * share, self._rows)
            error = np.square(_on_grid(values, step, zero, self._form.levels) - values) @ weight
            better = error < best
            best[better] = error[better]
            self._steps[better, index], self._lows[better, index] = step[better], zero[better]

    def round(self, column: int, values: Floats) -> Floats:
        """The nearest value of the grid for ``values`` [N] of one column; its code is kept."""
        group = column // self.group
        step, low = self._steps[:, group], self._lows[:, group]
        codes = _codes(values, step, low, self._form.levels)
        self._codes[:, column] = codes
        rounded: Floats = step * codes + low
        return rounded

    def rows(self) -> Bytes:
        """The encoded rows, uint8 [N, row bytes]."""
        return self._form.pack(self._codes, self._steps, self._lows, self._rows)

    def values(self) -> Floats:
        """What the codes stand for: float32 [N, K]."""
        steps, lows = (np.repeat(found, self.group, axis=1) for found in (self._steps, self._lows))
        found: Floats = steps * self._codes + lows
        return found


def _codes(values: Floats, step: Floats, low: Floats, levels: int) -> Floats:
    """Nearest codes, as float32; 0 where the step is 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        codes = np.where(step == 0, np.float32(0), (values - low) / step)
    found: Floats = np.clip(np.rint(codes), 0, levels).astype(np.float32)
    return found


def _on_grid(values: Floats, step: Floats, low: Floats, levels: int) -> Floats:
    found: Floats = _codes(values, step[:, None], low[:, None], levels) * step[:, None] + low[:, None]
    return found
