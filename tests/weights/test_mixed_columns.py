"""Headers of matrices with permuted columns and inputs of 4 or 8 bits, and the forms of inputs in groups of 64."""

from __future__ import annotations

import numpy as np
import pytest

from kvern.core.errors import ModelFileError
from kvern.formats import activations, group_codes, mixed_header
from kvern.formats.weights import w4a4_mixed

K = 192


def outlying() -> np.ndarray:
    """Inputs with a few large channels, spread over all groups."""
    x = np.random.default_rng(0).standard_normal((40, K)).astype(np.float32)
    x[:, 5::24] *= 30
    return x


def kept(x: np.ndarray, header: np.ndarray) -> float:
    """Error of the rounded inputs over their size, each channel counted alike."""
    seen = activations.get("mixed 4/8").rounded(x, header)
    size = np.sqrt(np.mean(x**2, axis=0))
    return float(np.mean(np.sqrt(np.mean((seen - x) ** 2, axis=0)) / size))


def test_outliers_meet_in_the_last_groups() -> None:
    maxima = np.abs(outlying()).max(axis=0)
    columns, wide = mixed_header.parse(K, mixed_header.calibrated_header(maxima, 1))
    assert wide.tolist() == [False, False, True]
    assert (np.diff(maxima[columns]) >= 0).all()
    assert set(range(5, K, 24)) <= set(columns[128:].tolist())


def test_the_permutation_is_what_helps() -> None:
    x = outlying()
    nothing = mixed_header.plain_header(K)
    unmoved = mixed_header.header_of(np.arange(K), np.array([False, False, True]))
    moved = mixed_header.calibrated_header(np.abs(x).max(axis=0), 1)
    everywhere = mixed_header.header_of(np.arange(K), np.ones(3, np.bool_))
    assert kept(x, moved) < 0.5 * kept(x, unmoved) < 0.5 * kept(x, nothing)
    np.testing.assert_array_equal(
        activations.get("mixed 4/8").rounded(x, everywhere), activations.get("int8 group 64").rounded(x, nothing)
    )


@pytest.mark.parametrize("wide_blocks", [-1, 4])
def test_more_wide_groups_than_there_are(wide_blocks: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 3"):
        mixed_header.calibrated_header(np.ones(K, np.float32), wide_blocks)


@pytest.mark.parametrize("maxima", [np.ones(65), np.ones(0), np.full(64, np.nan), np.ones((2, 64))])
def test_maxima_that_say_nothing(maxima: np.ndarray) -> None:
    with pytest.raises(ValueError, match="channel_maxima"):
        mixed_header.calibrated_header(maxima.astype(np.float32), 1)


def test_damaged_headers_are_refused() -> None:
    good = mixed_header.plain_header(K)
    rows = w4a4_mixed.encode_rows(np.zeros((2, K), np.float32), good)
    twice, outside, flag = good.copy(), good.copy(), good.copy()
    twice[:4] = twice[4:8]
    outside[3] = 0x80
    flag[-1] = 2
    cases = ((twice, "permutation"), (outside, "permutation"), (flag, "neither"), (good[:-1], "header of"))
    for bad, message in cases:
        with pytest.raises(ModelFileError, match=message):
            w4a4_mixed.FORMAT.decode(rows, 2, K, bad)
        with pytest.raises(ModelFileError, match=message):
            activations.get("mixed 4/8").rounded(np.zeros((1, K), np.float32), bad)
    with pytest.raises(ModelFileError, match="header of 0 bytes"):
        w4a4_mixed.FORMAT.decode(rows, 2, K)
    with pytest.raises(ModelFileError, match="blocks of 64"):
        w4a4_mixed.FORMAT.encode_matrix(np.zeros((2, 100), np.float32))


@pytest.mark.parametrize(("form", "top"), [("int8 group 64", 127), ("int6 group 64", 31)])
def test_groups_of_64_are_scaled_on_their_own(form: str, top: int) -> None:
    x = np.concatenate([np.full(64, 1.0), np.linspace(-100, 100, 36)]).astype(np.float32)[None]
    groups = group_codes.in_groups(x)
    assert groups.shape == (1, 2, 64)
    scales, _ = group_codes.scales_of(groups, top)
    np.testing.assert_array_equal(scales, np.float32([[1, 100]]) / np.float32(top))
    seen = activations.get(form).rounded(x, np.empty(0, np.uint8))
    assert seen.shape == x.shape
    assert np.abs(seen - x).max() <= 0.501 * 100 / top
    x[0, 70] = np.nan
    seen = activations.get(form).rounded(x, np.empty(0, np.uint8))
    assert np.isnan(seen[0, 64:]).all()
    assert np.isfinite(seen[0, :64]).all()
