"""The two levels of qoq: what is stored, and that no rebuilt value leaves the range of a signed byte."""

from __future__ import annotations

import numpy as np
import pytest

from kvern.formats.weights import qoq


def level_1_of(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    codes, s2, zeros, _ = qoq.split(raw)
    return qoq.rebuilt(codes, s2, zeros)


def test_no_row_overflows_and_errors_are_at_most_what_the_step_explains():
    """Whole numbers up to 119 with a 119 in each row are their own level 1; groups lie anywhere within."""
    draw = np.random.default_rng(0)
    ends = np.sort(draw.integers(-119, 120, (3000, 2, 2)), axis=2)
    values = draw.integers(ends[..., :1], ends[..., 1:] + 1, (3000, 2, 64)).reshape(3000, 128).astype(np.float32)
    values[:, 0] = 119
    found, sound = level_1_of(qoq.encode(values))
    assert sound.all()
    error = np.abs(found - values).reshape(len(values), -1, 64)
    group = values.reshape(error.shape)
    low, high = np.minimum(group.min(axis=2), 0), np.maximum(group.max(axis=2), 0)
    s2, z = qoq.group_parameters(low, high)
    cut = np.maximum(np.maximum(high - (15 - z) * s2, -z * s2 - low), 0)  # where the steps end before the range
    assert (error <= np.maximum(s2 / 2, cut)[..., None]).all()


@pytest.mark.parametrize("low", range(-119, 1))
def test_every_range_fits(low):
    """All values between each pair of ends, so that every s2 and z the format can have is tried."""
    for high in range(0, 120):
        ends = np.resize(np.arange(low, high + 1, dtype=np.float32), (1, 64 * -(-(high + 1 - low) // 64)))
        s2, z = qoq.group_parameters(np.float32([low]), np.float32([high]))
        codes = np.clip(np.rint(ends / s2) + z, 0, 15)
        rebuilt = (codes - z) * s2
        assert 1 <= s2[0] <= 16
        assert 0 <= z[0] * s2[0] <= 127
        assert np.abs(rebuilt).max() <= 127


def test_a_row_in_bytes():
    values = np.zeros((1, 64), np.float32)
    values[0, :3], values[0, 33] = [1.19, -1.19, 0.16], 0.4
    raw = qoq.FORMAT.encode(values)
    assert raw.shape == (1, 34 + 4)
    assert raw[0, :2].tolist() == [16, 7 * 16]
    assert raw[0, 2:5].tolist() == [7 + 7 | 7 << 4, 0 | 7 + 2 << 4, 7 + 1 | 7 << 4]
    np.testing.assert_allclose(raw[0, 34:].view("<f4"), 1.19 / 119, rtol=1e-6)
    np.testing.assert_allclose(qoq.FORMAT.decode(raw, 1, 64)[0, [0, 1, 2, 33]], [1.12, -1.12, 0.16, 0.32], rtol=1e-6)


def test_groups_without_a_zero_in_their_range():
    """z is 0 .. 15, so the range is stretched to 0: s2 is 8, half a step of each level the error."""
    values = np.linspace(0.5, 1.19, 64, dtype=np.float32)[None]
    for signed in (values, -values):
        assert np.abs(qoq.FORMAT.decode(qoq.FORMAT.encode(signed), 1, 64) - signed).max() <= 0.045


def test_nearly_zero_rows_are_zero():
    for size in (0.0, 1e-40, 1e-37):
        assert not qoq.FORMAT.decode(qoq.FORMAT.encode(np.full((1, 64), size, np.float32)), 1, 64).any()


def test_packing_is_undone_by_splitting():
    draw = np.random.default_rng(4)
    codes = draw.integers(0, 16, (3, 192), dtype=np.uint8)
    s2, zeros = draw.integers(0, 256, (2, 3, 3), dtype=np.uint8)
    s1 = draw.standard_normal(3).astype(np.float32)
    for given_part, found in zip((codes, s2, zeros, s1), qoq.split(qoq.pack(codes, s2, zeros, s1)), strict=True):
        np.testing.assert_array_equal(given_part, found)
