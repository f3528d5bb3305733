"""The reference of how activations, keys and values are rounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kvern.core.errors import ConfigError
from kvern.formats import bfloat16, int8_codes, kv
from kvern.formats.kv import kv8

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


def test_codes_round_to_nearest_even_and_keep_within_127() -> None:
    x = np.array([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.6, -127.0], np.float32)
    codes, scale = int8_codes.int8_row(x)
    assert codes.tolist() == [127, 0, 2, 2, 0, -2, -127, -127]
    assert scale == np.float32(1)
    assert codes.dtype == np.int8
    assert scale.dtype == np.float32


def test_groups_are_scaled_on_their_own() -> None:
    x = np.concatenate([np.full(32, 1.0), np.full(32, 100.0)]).astype(np.float32)[None]
    codes, scales = int8_codes.int8_group_32(x)
    assert (codes == 127).all()
    np.testing.assert_array_equal(scales, [[np.float32(1) / np.float32(127), np.float32(100) / np.float32(127)]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_group_alone(bad: float) -> None:
    x = np.ones((1, 64), np.float32)
    x[0, 3] = bad
    codes, scales = int8_codes.int8_group_32(x)
    assert np.isnan(scales[0, 0])
    assert not codes[0, :32].any()
    assert (codes[0, 32:] == 127).all()


def test_zeros_have_scale_zero() -> None:
    codes, scales = int8_codes.int8_group_32(np.zeros((2, 64), np.float32))
    assert not codes.any()
    assert not scales.any()


@given(arrays.arrays(np.float32, (3, 32), elements=FINITE))
def test_int8_is_within_half_a_step(x: np.ndarray) -> None:
    codes, scales = int8_codes.int8_row(x)
    assert np.abs(codes.astype(int)).max() <= 127
    normal = np.abs(x).max(axis=-1) > 1e-30  # below, the step itself is not a normal number
    back = codes.astype(np.float64) * scales[:, None].astype(np.float64)
    assert (np.abs(back - x) <= 0.5001 * scales[:, None])[normal].all()


def test_bfloat16_rounds_ties_to_even_and_keeps_special_values() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x80000000], np.uint32)
    assert [hex(b) for b in bfloat16.to_bits(bits.view(np.float32))] == [
        "0x3f80", "0x3f82", "0x3f81", "0x7f80", "0x7f80", "0xff80", "0x8000",
    ]  # fmt: skip
    payload = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(bfloat16.from_bits(bfloat16.to_bits(payload))).all()


@given(st.integers(0, 0xFFFF))
def test_every_bfloat16_survives_a_round_trip(bits: int) -> None:
    value = bfloat16.from_bits(np.array([bits], np.uint16))
    if not np.isnan(value[0]):
        assert bfloat16.to_bits(value)[0] == bits


@pytest.mark.parametrize(("name", "expected"), [("bf16", 512), ("kv8", 272), ("f32", 1024)])
def test_kv_bytes_of_a_token(name: str, expected: int) -> None:
    assert kv.get(name).bytes_per_token(kv_heads=2, head_dim=64) == expected


def test_kv_formats_round_each_vector_on_its_own() -> None:
    vectors = np.random.default_rng(1).standard_normal((4, 3, 32)).astype(np.float32)
    for name, error in (("bf16", 2**-8), ("kv8", 0.5 / 127), ("f32", 0.0)):
        coding = kv.get(name).keys
        stored = coding.stored(vectors)
        assert stored.dtype == np.float32
        assert (np.abs(stored - vectors) <= error * np.abs(vectors).max(axis=-1, keepdims=True)).all()
        np.testing.assert_array_equal(stored[2, 1], coding.stored(vectors[2, 1]))
    codes, scales = kv8.quantise(vectors)
    assert codes.shape == vectors.shape
    assert scales.shape == (4, 3)


def test_unknown_kv_formats_are_named() -> None:
    with pytest.raises(
        ConfigError, match="'kv5' is not known; known are bf16, kv8, kv4, kv4-hadamard, kv4-token, f32"
    ):
        kv.get("kv5")
