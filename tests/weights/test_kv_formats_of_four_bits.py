"""The references of the 4-bit KV formats, and which formats go together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvern.core.errors import ConfigError
from kvern.formats import hadamard, kv, uint4
from kvern.formats.kv import kv4, kv4_hadamard, kv4_token

SHAPES = {"tokens": st.integers(1, 130), "dim": st.sampled_from([16, 64, 80, 128, 256]), "seed": st.integers(0, 99)}


def vectors(tokens: int, dim: int, seed: int) -> np.ndarray:
    """Keys as models have them: some channels stand out, in the same way for every token."""
    draw = np.random.default_rng([tokens, dim, seed])
    channels = np.exp(draw.standard_normal(dim)), 4 * draw.standard_normal(dim)
    return (draw.standard_normal((tokens, 2, dim)) * channels[0] + channels[1]).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(**SHAPES)
def test_codes_are_within_half_a_step(tokens: int, dim: int, seed: int) -> None:
    x = vectors(tokens, dim, seed)
    for axis in (-1, 0):
        coded = uint4.encode(x, axis)
        assert coded.codes.max() <= 15
        for beside in (coded.step, coded.low):
            np.testing.assert_array_equal(beside, beside.astype(np.float16).astype(np.float32))
        # float16 keeps 11 bits of the low, and of the step, which counts up to fifteen times.
        slack = np.abs(coded.low) * 2**-11 + 15 * coded.step * 2**-11 + 2**-23
        assert (np.abs(coded.decode() - x) <= 0.5001 * coded.step + slack).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6])
def test_what_cannot_be_coded_spoils_its_run_alone(bad: float) -> None:
    x = np.ones((3, 8), np.float32)
    x[1, 2] = bad
    stored = uint4.stored(x)
    assert np.isnan(stored[1]).all()
    np.testing.assert_array_equal(stored[[0, 2]], x[[0, 2]])


def test_flat_runs_are_kept_as_float16_has_them() -> None:
    x = np.repeat(np.array([[0.0], [0.1], [-3.0]], np.float32), 16, axis=1)
    np.testing.assert_array_equal(uint4.stored(x), x.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(("dim", "order"), [(64, 64), (80, 16), (96, 32), (128, 128), (256, 128), (20, 4)])
def test_rotation_keeps_scores_and_is_its_own_inverse(dim: int, order: int) -> None:
    assert hadamard.order_of(dim) == order
    q, k = np.random.default_rng(dim).standard_normal((2, 7, dim)).astype(np.float32)
    turned = hadamard.rotate(k)
    np.testing.assert_allclose(hadamard.rotate(turned), k, atol=1e-5)
    np.testing.assert_allclose(hadamard.rotate(q) @ turned.T, q @ k.T, atol=1e-4)
    blocks = turned.reshape(7, -1, order)
    np.testing.assert_allclose(np.square(blocks).sum(-1), np.square(k.reshape(7, -1, order)).sum(-1), rtol=1e-4)
    # Sylvester's matrix: one row of it, computed from its definition.
    signs = np.array([(-1) ** bin(5 & j).count("1") if order > 5 else 1 for j in range(order)])
    if order > 5:
        np.testing.assert_allclose(blocks[:, 0, 5], k[:, :order] @ signs / np.sqrt(order), atol=1e-5)


def test_outlier_channels_cost_per_token_codes_most_and_per_channel_codes_least() -> None:
    keys = vectors(64, 128, 3)
    errors = [np.square(coding.stored(keys) - keys).mean() for coding in
              (kv4.CODING, kv4_hadamard.CODING, kv4_token.CODING)]  # fmt: skip
    assert errors[0] < 0.5 * errors[1] < 0.5 * errors[2]


@pytest.mark.parametrize(
    ("name", "bits", "share", "tail"),
    [
        ("kv4", 4.5, "never", 2 * 2 * 128 * 3 * 64),
        ("kv4-hadamard", 4.5, "always", 0),
        ("kv4-token", 4.5, "always", 0),
        ("kv8", 8.5, "always", 0),
        ("kv8/kv4-token", 6.5, "always", 0),
        ("kv4/kv8", 6.5, "never", 2 * 2 * 128 * 3 * 64),
    ],
)
def test_sizes_and_capabilities(name: str, bits: float, share: str, tail: int) -> None:
    found = kv.get(name)
    assert found.name == name
    assert found.bytes_per_token(3, 64) * 8 == bits * 2 * 3 * 64
    assert found.share == share
    assert bool(found.share_reason) == (share == "never")
    assert found.tail_bytes(3, 64) == tail


def test_keys_and_values_are_chosen_apart() -> None:
    mixed = kv.get("kv8/kv4-token")
    assert mixed.keys is kv.get("kv8").keys
    assert mixed.values is kv.get("kv4-token").values
    assert kv.get("kv8/kv8") is kv.get("kv8")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("kv5/kv8", "'kv5' is not known"),
        ("kv8/kv4/kv8", "3 parts"),
        ("f32/kv8", "f32 goes with f32 only|f32 is for the reference"),
        ("kv8/kv4", "keeps no recent keys; take kv8/kv4-token"),
        ("bf16/kv4-hadamard", "only keys are rotated; take bf16/kv4-token"),
        ("", "'' is not known"),
    ],
)
def test_formats_that_do_not_go_together_are_refused_with_the_reason(name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        kv.get(name)
