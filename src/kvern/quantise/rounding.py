"""One matrix to one format by the method chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvern.formats import weights as weight_formats
from kvern.formats.weight_format import NO_HEADER
from kvern.formats.weights import bitstack
from kvern.quantise import gptq, grids, round_to_nearest
from kvern.quantise.grid import Floats, Grid, GridFormat
from kvern.quantise.grids import mixed_columns
from kvern.quantise.recipe import Choice

ROWS = 8192  # rounded at a time: rows do not influence each other


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """``rows`` uint8 [N, row bytes] and ``header`` as the format stores them; ``values`` float32 [N, K] of them."""

    values: Floats
    rows: NDArray[np.uint8]
    header: NDArray[np.uint8]


def round_matrix(
    values: Floats, choice: Choice, moments: NDArray[np.float64], largest: NDArray[np.float32] | None = None
) -> Rounded:
    """``values`` float32 [N, K]; of its inputs, ``moments`` float64 [K, K] and the ``largest`` magnitudes [K].

    Formats without a grid are encoded plainly. Raises ModelFileError for values that are not finite or columns that
    do not divide into the format's blocks.
    """
    form = weight_formats.get(choice.format)
    if choice.method != "nearest" and form.name == mixed_columns.FORMAT and largest is not None:
        header, order = mixed_columns.header_for(largest)
        inner = moments[np.ix_(order, order)]
        rows = _on_grid(np.ascontiguousarray(values[:, order]), mixed_columns.GRID, inner, choice)
    elif choice.method != "nearest" and form.name == bitstack.NAME:
        header, rows = bitstack.stacked(values, column_scale=np.sqrt(np.diag(moments)).astype(np.float32))
    elif choice.method == "nearest" or not grids.has(choice.format):
        header, rows = form.encode_matrix(values)
    else:
        form.row_bytes(values.shape[1])
        header, rows = NO_HEADER, _on_grid(values, grids.get(choice.format), moments, choice)
    return Rounded(form.decode(rows, values.shape[0], values.shape[1], header), rows, header)


def _on_grid(values: Floats, form: GridFormat, moments: NDArray[np.float64], choice: Choice) -> NDArray[np.uint8]:
    """Encoded rows of ``values``."""
    importance = np.diag(moments).copy()
    upper = gptq.factor(moments) if choice.method == "compensated" else None
    parts = []
    for begin in range(0, values.shape[0], ROWS):
        part = np.ascontiguousarray(values[begin : begin + ROWS])
        grid = Grid(form, part)
        if upper is None:
            round_to_nearest.round_rows(part, grid, importance)
        else:
            gptq.round_rows(part, grid, upper, importance)
        parts.append(grid.rows())
    return np.concatenate(parts)
