"""Logits of the reference back end against transformers, on tiny random models of every family, in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from device_steps import logits_of, random_tokens

from kvern.assembly.model import DeviceOptions, make_device, open_model

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

BOUND = 1e-4
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


def peer_logits(folder: Path, tokens: list[int]) -> np.ndarray:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def worst_error(folder: Path, count: int = 150, chunk: int | None = None) -> float:
    """Largest difference over the largest logit."""
    model = open_model(folder)
    tokens = random_tokens(count, model.spec.vocab)
    device = make_device(model, DeviceOptions(backend="reference", kv_format="f32", pages=8))
    ours, theirs = logits_of(device, tokens, chunk), peer_logits(folder, tokens)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_a_whole_prompt(family: str, tied: bool, tmp_path: Path) -> None:
    assert worst_error(tiny_models.write_hf(tmp_path, family, tied=tied)) < BOUND


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_chunked_prefill_over_pages(family: str, tmp_path: Path) -> None:
    assert worst_error(tiny_models.write_hf(tmp_path, family), chunk=50) < BOUND


@pytest.mark.parametrize("window", [1, 24, 64, 100])
def test_windows_shorter_and_longer_than_pages(window: int, tmp_path: Path) -> None:
    assert worst_error(tiny_models.write_hf(tmp_path, "gemma3", window=window), chunk=33) < BOUND


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_windows_on_the_upper_layers(family: str, tmp_path: Path) -> None:
    window = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}
    folder = edited(tiny_models.write_hf(tmp_path, family), lambda c: c.update(window))
    assert [layer.window for layer in open_model(folder).spec.layers] == [None, 20]
    assert worst_error(folder) < BOUND


@pytest.mark.parametrize("scaling", [{"rope_type": "linear", "factor": 4.0}, LLAMA3, YARN])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_rope_scaling_in_the_older_spelling(family: str, scaling: dict[str, Any], tmp_path: Path) -> None:
    folder = edited(tiny_models.write_hf(tmp_path, family), lambda c: c.update(rope_scaling=scaling))
    assert worst_error(folder) < BOUND


@pytest.mark.parametrize("scaling", [{"rope_type": "default"}, LLAMA3, YARN])
def test_rope_parameters_in_the_newer_spelling(scaling: dict[str, Any], tmp_path: Path) -> None:
    def newer(config: dict[str, Any]) -> None:
        config["rope_parameters"] = {**scaling, "rope_theta": config.pop("rope_theta") * 3}

    folder = edited(tiny_models.write_hf(tmp_path, "qwen3"), newer)
    assert open_model(folder).spec.layers[0].rope.theta == pytest.approx(30_000.0)
    assert worst_error(folder) < BOUND


def test_gemma3_scales_its_global_layers_alone(tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 8.0}
    older = edited(tiny_models.write_hf(tmp_path / "a", "gemma3"), lambda c: c.update(rope_scaling=scaling))
    assert worst_error(older) < BOUND

    def newer(config: dict[str, Any]) -> None:
        del config["rope_local_base_freq"], config["rope_theta"]
        config["rope_parameters"] = {
            "full_attention": {**scaling, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }

    again = edited(tiny_models.write_hf(tmp_path / "b", "gemma3"), newer)
    assert open_model(again).spec.layers == open_model(older).spec.layers
    assert worst_error(again) < BOUND


def test_gemma3_query_scale(tmp_path: Path) -> None:
    folder = edited(tiny_models.write_hf(tmp_path, "gemma3"), lambda c: c.update(query_pre_attn_scalar=100))
    assert open_model(folder).spec.layers[0].scale == pytest.approx(0.1)
    assert worst_error(folder) < BOUND


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_what_transformers_itself_saves(family: str, tmp_path: Path) -> None:
    """Biases, an odd head size, keys left out or spelled anew: whatever save_pretrained writes is read."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    names = {"llama": "Llama", "qwen3": "Qwen3", "gemma3": "Gemma3Text"}
    sizes = {
        "vocab_size": 96, "hidden_size": 60, "intermediate_size": 88, "num_hidden_layers": 7,
        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 20, "attention_bias": True,
        "max_position_embeddings": 512,
    }  # fmt: skip
    config = getattr(transformers, names[family] + "Config")(**sizes, pad_token_id=0)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    assert worst_error(tmp_path, 70) < BOUND
