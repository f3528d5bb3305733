"""The same weights as a GGUF file and as a Hugging Face folder are the same model, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
from device_steps import logits_of, random_tokens

from kvern.assembly.model import DeviceOptions, LoadedModel, make_device, open_model

REFERENCE = DeviceOptions(backend="reference", kv_format="f32", pages=2)


def logits(model: LoadedModel, options: DeviceOptions = REFERENCE) -> np.ndarray:
    return logits_of(make_device(model, options), random_tokens(80, model.spec.vocab))


@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"tied": False}, {"head_dim": 32}, {"kv_heads": 4}])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_both_files_give_the_same_bits(family: str, changes: dict[str, object], tmp_path: Path) -> None:
    if family == "llama" and changes.get("head_dim") == 32:
        changes = {**changes, "heads": 8}  # GGUF files of llama state no head size but hidden / heads
    if family == "qwen2" and "head_dim" in changes:
        changes = {**changes, "heads": 8}
    gguf = open_model(tiny_models.write_gguf(tmp_path / "m.gguf", family, **changes))
    folder = open_model(tiny_models.write_hf(tmp_path / "hf", family, **changes))
    assert gguf.spec.layers == folder.spec.layers
    assert gguf.spec.tied == folder.spec.tied
    assert gguf.spec.eos == folder.spec.eos and gguf.spec.max_context == folder.spec.max_context
    np.testing.assert_array_equal(logits(gguf), logits(folder))


@pytest.mark.parametrize("weight_format", tiny_models.GGUF_FORMATS)
def test_every_block_format_loads_and_stays_near_the_floats(weight_format: str, tmp_path: Path) -> None:
    exact = logits(open_model(tiny_models.write_gguf(tmp_path / "f32.gguf", "llama")))
    model = open_model(tiny_models.write_gguf(tmp_path / "m.gguf", "llama", weight_format))
    assert model.weight_formats == (weight_format,)
    got = logits(model)
    error = np.sqrt(np.mean((got - exact) ** 2) / np.mean(exact**2))
    # Random layers multiply what rounding does; these are the measured errors and a quarter more.
    bounds = {"Q4": 0.48, "Q5": 0.26, "Q6": 0.11, "Q8": 0.035, "BF": 0.01, "F1": 0.0013, "F3": 0.0}
    assert error <= bounds[weight_format[:2]]


@pytest.mark.parametrize(("dtype", "tolerance"), [("F16", 0.005), ("BF16", 0.03)])
def test_half_precision_folders(dtype: str, tolerance: float, tmp_path: Path) -> None:
    exact = logits(open_model(tiny_models.write_hf(tmp_path / "a", "qwen3")))
    got = logits(open_model(tiny_models.write_hf(tmp_path / "b", "qwen3", dtype)))
    assert 0 < np.abs(got - exact).max() / np.abs(exact).max() < tolerance


@pytest.mark.parametrize(("weight_format", "tolerance"), [("f32", 1e-9), ("bf16", 0.03), ("w8a8", 0.05)])
def test_conversion_at_load(weight_format: str, tolerance: float, tmp_path: Path) -> None:
    model = open_model(tiny_models.write_gguf(tmp_path / "m.gguf", "gemma3", "Q8_0"))
    exact = logits(model)
    options = DeviceOptions(backend="reference", kv_format="f32", pages=2, weight_format=weight_format)
    got = logits(model, options)
    assert np.sqrt(np.mean((got - exact) ** 2) / np.mean(exact**2)) <= tolerance


def test_tied_weights_are_one_matrix_in_every_format(tmp_path: Path) -> None:
    model = open_model(tiny_models.write_gguf(tmp_path / "m.gguf", "gemma3")).network
    assert model.output is model.embedding
    converted = model.in_format("w8a8")
    assert converted.output is converted.embedding
    assert len(converted.weights()) == 1 + 7 * len(model.layers)
