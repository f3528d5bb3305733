"""Rounding on the grid of every weight format: what is stored is what was meant, and carried errors pay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvern.core.errors import ConfigError
from kvern.formats import weights as weight_formats
from kvern.quantise import gptq, grids, round_to_nearest
from kvern.quantise.grid import NO_SEARCH, Grid
from kvern.quantise.moments import second_moments
from kvern.quantise.recipe import Choice
from kvern.quantise.rounding import round_matrix

KNOWN = [name for name in grids.NAMES if name in weight_formats.NAMES]


def correlated(seed: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights [24, K] and inputs [rows, K] whose channels move together."""
    draw = np.random.default_rng(seed)
    weights = (draw.standard_normal((24, columns)) * draw.lognormal(0, 0.7, columns)).astype(np.float32)
    mix = np.eye(columns) + 2 * draw.standard_normal((columns, columns)) / np.sqrt(columns)
    return weights, (draw.standard_normal((rows, columns)) @ mix).astype(np.float32)


def output_error(inputs: np.ndarray, exact: np.ndarray, rounded: np.ndarray) -> float:
    return float(np.square(inputs @ (exact - rounded).T).sum() / np.square(inputs @ exact.T).sum())


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_stored_decodes_to_the_values_that_rounding_meant(name: str) -> None:
    weights, inputs = correlated(1, 400, 128)
    moments = second_moments(inputs)
    grid = Grid(grids.get(name), weights)
    meant = gptq.round_rows(weights, grid, gptq.factor(moments), np.diag(moments).copy())
    stored = weight_formats.get(name).decode(grid.rows(), *weights.shape)
    top = np.abs(weights).max()
    assert np.abs(stored - meant).max() <= 1e-6 * top
    assert np.abs(grid.values() - meant).max() <= 1e-6 * top


@pytest.mark.parametrize("name", KNOWN)
def test_carrying_errors_on_beats_rounding_to_nearest_on_correlated_inputs(name: str) -> None:
    weights, inputs = correlated(2, 600, 128)
    moments = second_moments(inputs)
    nearest, searched, carried = (
        output_error(inputs, weights, round_matrix(weights, Choice(name, method=method), moments).values)
        for method in ("nearest", "clip search", "compensated")
    )
    assert carried < 0.7 * nearest
    assert carried < 0.7 * searched


@given(st.integers(0, 10_000), st.sampled_from(KNOWN), st.sampled_from([64, 192]))
@settings(max_examples=25, deadline=None)
def test_searching_the_range_never_loses_by_its_own_measure(seed: int, name: str, columns: int) -> None:
    draw = np.random.default_rng(seed)
    weights = draw.standard_t(3, (6, columns)).astype(np.float32)
    importance = draw.lognormal(0, 1, columns)
    errors = []
    for shrinks in (NO_SEARCH, (1.0, 0.9, 0.8)):
        rounded = round_to_nearest.round_rows(weights, Grid(grids.get(name), weights, shrinks), importance)
        errors.append(float((np.square(rounded - weights) @ importance).sum()))
    assert errors[1] <= errors[0] * (1 + 1e-5)


@pytest.mark.parametrize("name", KNOWN)
def test_rows_of_zeros_and_channels_never_seen_stay_finite(name: str) -> None:
    weights, inputs = correlated(3, 300, 128)
    weights[4] = 0
    inputs[:, 7] = 0
    rounded = round_matrix(weights, Choice(name), second_moments(inputs)).values
    assert np.isfinite(rounded).all()
    assert np.abs(rounded[4]).max() <= 1e-6


def test_one_enormous_row_does_not_decide_the_moments() -> None:
    inputs = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32)
    before = second_moments(inputs)
    inputs[0] *= 1000
    after = second_moments(inputs)
    assert np.abs(after - before).max() < 0.5 * np.diag(before).mean()


def test_a_format_without_a_grid_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="F16"):
        grids.get("F16")
