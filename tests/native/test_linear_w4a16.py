"""w4a16: native codec against NumPy, kernels exact where they promise it, and a model in it end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
from device_steps import logits_of, random_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_blocks import random_rows, same_bits

from kvern import _native
from kvern.assembly.model import open_model
from kvern.formats.weights import w4a16
from kvern.kernels.cpu.device import CpuDevice, CpuLimits
from kvern.kernels.reference.device import ReferenceDevice


def random_raw(n: int, k: int, seed: int = 0):
    """Every bit pattern of the codes, scales of both signs."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (n * k // 64, 34), dtype=np.uint8)
    raw[:, :2] = rng.uniform(-0.02, 0.02, len(raw)).astype(np.float16).view(np.uint8).reshape(-1, 2)
    return raw.reshape(n, -1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 90), st.integers(1, 6), st.integers(0, 9999))
def test_native_rows_and_products_equal_numpy(m, n, groups, seed):
    k, order = 64 * groups, np.random.default_rng(seed).permutation(n).astype(np.int32)
    raw, x = random_raw(n, k, seed), random_rows(m, k, seed)
    weight = _native.PackedWeight.from_blocks("w4a16", raw, n, k, order)
    values = w4a16.FORMAT.decode(raw, n, k)[order]
    assert np.array_equal(weight.rows(np.arange(n, dtype=np.int32)), values)
    expected = _native.linear(x, _native.PackedWeight.from_float("f32", values), isa="portable", activation="float32")
    for isa in _native.available_isas():
        assert same_bits(_native.linear(x, weight, isa=isa, activation="float32"), expected), isa


def test_encoding_is_within_half_a_step_and_repeats():
    values = np.random.default_rng(0).standard_normal((7, 320), dtype=np.float32)
    values[3] = 0
    raw = w4a16.FORMAT.encode(values)
    decoded = w4a16.FORMAT.decode(raw, 7, 320)
    groups = values.reshape(-1, 64)
    step = np.abs(groups).max(axis=1, keepdims=True) / 8
    # The largest value of the other sign may lie one step outside the codes.
    assert (np.abs(decoded.reshape(-1, 64) - groups) <= step * 1.01).all()
    assert np.median(np.abs(decoded.reshape(-1, 64) - groups) / np.where(step == 0, 1, step)) < 0.5
    assert np.array_equal(w4a16.FORMAT.decode(w4a16.FORMAT.encode(decoded), 7, 320), decoded)


def test_memory_is_that_of_the_file():
    weight = _native.PackedWeight.from_blocks("w4a16", random_raw(64, 576), 64, 576)
    assert weight.nbytes == 64 * 576 // 64 * 34


@pytest.mark.parametrize(("n", "k", "bytes_"), [(4, 96, 4 * 51), (4, 128, 4 * 68 - 1), (0, 64, 0)])
def test_wrong_sizes_are_refused(n, k, bytes_):
    with pytest.raises(ValueError, match="w4a16"):
        _native.PackedWeight.from_blocks("w4a16", np.zeros(bytes_, np.uint8), n, k)


def test_a_header_is_refused():
    with pytest.raises(ValueError, match="no header"):
        _native.PackedWeight.from_blocks("w4a16", random_raw(4, 64), 4, 64, header=np.zeros(8, np.uint8))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_model_gives_the_logits_of_the_reference(family: str, tmp_path: Path) -> None:
    model = open_model(tiny_models.write_gguf(tmp_path / "m.gguf", family, "F32"))
    network = model.network.in_format("w4a16")
    tokens = random_tokens(70, model.spec.vocab)
    got = logits_of(CpuDevice(network, "bf16", CpuLimits(pages=2, max_rows=160), _native.Pool(2)), tokens)
    exact = logits_of(ReferenceDevice(network, "bf16", 2, "exact"), tokens)
    bound = 1e-2 if _native.isa() == "amx" else 5e-4
    assert np.sqrt(np.mean((got - exact) ** 2) / np.mean(exact**2)) < bound
