"""What is read from a file about a model, and what is refused with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf_writer
import numpy as np
import pytest
import safetensors_writer
import tiny_models
import tiny_vocabulary

from kvern.assembly.model import open_model
from kvern.core.errors import ModelFileError
from kvern.models import registry, rope
from kvern.models.basics import GgufFacts
from kvern.models.build import neighbours_to_halves
from kvern.models.facts import Facts


def gguf_facts(family: str, **changes: object) -> GgufFacts:
    metadata: dict[str, object] = {
        "general.architecture": family,
        f"{family}.context_length": 128,
        f"{family}.embedding_length": 64,
        f"{family}.block_count": 12,
        f"{family}.feed_forward_length": 96,
        f"{family}.attention.head_count": 4,
        f"{family}.attention.layer_norm_rms_epsilon": 1e-5,
    }
    metadata |= {f"{family}.{key}": value for key, value in changes.items()}
    return GgufFacts({k: v for k, v in metadata.items() if v is not None}, vocab=100, tied=True)


def spec_of(family: str, **changes: object):
    return registry.for_gguf(family).spec_from_gguf(gguf_facts(family, **changes))


def test_absent_keys_have_the_usual_values() -> None:
    spec = spec_of("llama")
    layer = spec.layers[0]
    assert (layer.heads, layer.kv_heads, layer.head_dim, layer.window) == (4, 4, 16, None)
    assert layer.scale == 0.25 and layer.rope.theta == 10_000.0
    assert spec.bos is None and spec.eos == () and spec.tied


def test_a_value_per_layer_counts_when_all_are_equal() -> None:
    assert spec_of("llama", **{"attention.head_count_kv": [2] * 12}).layers[3].kv_heads == 2
    with pytest.raises(ModelFileError, match="head_count_kv"):
        spec_of("llama", **{"attention.head_count_kv": [2] * 11 + [4]})


def test_gemma3_windows_and_bases_follow_the_pattern() -> None:
    spec = spec_of("gemma3", **{"attention.sliding_window": 8})
    assert [layer.window for layer in spec.layers] == ([8] * 5 + [None]) * 2
    assert {layer.rope.theta for layer in spec.layers if layer.window} == {10_000.0}
    assert {layer.rope.theta for layer in spec.layers if not layer.window} == {1_000_000.0}
    assert spec.embed_scale == 8.0 and spec.activation == "gelu_tanh"


def test_gemma3_27b_scales_by_hidden_over_heads() -> None:
    changes = {"block_count": 62, "embedding_length": 5376, "attention.head_count": 32, "attention.key_length": 128}
    spec = spec_of("gemma3", **changes, **{"attention.value_length": 128, "attention.sliding_window": 1024})
    assert spec.layers[0].scale == pytest.approx(168**-0.5)


def test_rope_freqs_divide_the_frequencies() -> None:
    facts = gguf_facts("llama")
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    scaled = registry.for_gguf("llama").spec_from_gguf(GgufFacts(facts.metadata, 100, True, factors))
    plain = np.array(spec_of("llama").layers[0].rope.frequencies)
    np.testing.assert_allclose(np.array(scaled.layers[0].rope.frequencies) * factors, plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("llama", {"expert_count": 8}, "expert_count"),
        ("llama", {"embedding_length": None}, "embedding_length"),
        ("llama", {"embedding_length": "big"}, "not an integer"),
        ("llama", {"attention.head_count": 0}, "0 heads"),
        ("llama", {"attention.head_count_kv": 3}, "cannot share"),
        ("llama", {"rope.dimension_count": 8}, "rotating 8 of 16"),
        ("llama", {"attention.value_length": 8}, "differ in size"),
        ("llama", {"rope.scaling.type": "longrope"}, "longrope"),
        ("llama", {"rope.freq_base": -1.0}, "out of range"),
        ("llama", {"block_count": 1 << 40}, "layers is out of range"),
        ("gemma3", {"final_logit_softcapping": 30.0, "attention.sliding_window": 8}, "softcapping"),
        ("gemma3", {}, "sliding_window"),
        ("qwen2", {"context_length": 0}, "context"),
    ],
)
def test_gguf_metadata_that_is_refused(family: str, changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ModelFileError, match=reason):
        spec_of(family, **changes)


@pytest.mark.parametrize("name", ["gpt2", "llama4", "", "os.path"])
def test_other_architectures_are_refused_by_name(name: str) -> None:
    with pytest.raises(ModelFileError, match=r"not supported; supported are gemma3, llama, qwen2, qwen3"):
        registry.for_gguf(name)
    with pytest.raises(ModelFileError, match="not supported"):
        registry.for_hf(name)


def hf_folder(tmp_path: Path, family: str, change: dict[str, Any], generation: object = None) -> Path:
    folder = tiny_models.write_hf(tmp_path, family)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize(
    ("family", "change", "reason"),
    [
        ("llama", {"model_type": "mixtral"}, "mixtral"),
        ("llama", {"model_type": None}, "model_type"),
        ("llama", {"hidden_act": "relu"}, "relu"),
        ("llama", {"hidden_size": 128}, "has shape"),
        ("llama", {"vocab_size": 7}, "has shape"),
        ("llama", {"num_hidden_layers": 1}, "not part of this family"),
        ("llama", {"num_hidden_layers": 3}, "has no tensor"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"num_local_experts": 8}, "num_local_experts"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ("llama", {"rope_scaling": "linear"}, "not an object"),
        ("llama", {"partial_rotary_factor": 0.5}, "rotating 0.5"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "softcapping"),
        ("gemma3", {"use_bidirectional_attention": True}, "later tokens"),
        ("gemma3", {"layer_types": ["chunked_attention"] * 6}, "chunked_attention"),
        ("gemma3", {"layer_types": ["full_attention"]}, "layer_types"),
    ],
)
def test_folders_that_are_refused(family: str, change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=reason):
        open_model(hf_folder(tmp_path, family, change))


def test_generation_config_adds_ends_and_sampling(tmp_path: Path) -> None:
    generation = {"eos_token_id": [5, 6], "temperature": 0.6, "top_k": 20, "top_p": "high"}
    spec = open_model(hf_folder(tmp_path, "qwen3", {}, generation)).spec
    assert spec.eos == (5, 6)
    assert (spec.sampling.temperature, spec.sampling.top_k, spec.sampling.top_p) == (0.6, 20, None)


def test_a_config_that_is_not_json_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.write_hf(tmp_path, "llama")
    for text in ("[" * 100_000, "{", "[]"):
        (folder / "config.json").write_text(text)
        with pytest.raises(ModelFileError, match="JSON"):
            open_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelFileError, match=r"no config\.json"):
        open_model(folder)


def test_a_tensor_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    metadata = {"general.architecture": "llama"} | dict(gguf_facts("llama").metadata)
    metadata |= {"llama.block_count": 1} | tiny_vocabulary.gguf_metadata("llama")
    shapes = {"token_embd.weight": (32, 64), "output_norm.weight": (64,), "blk.0.attn_norm.weight": (64,),
              "blk.0.ffn_norm.weight": (64,)}  # fmt: skip
    shapes |= {f"blk.0.attn_{name}.weight": (64, 64) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate.weight": (96, 64), "blk.0.ffn_up.weight": (96, 64), "blk.0.ffn_down.weight": (64, 96)}

    def write(names: dict[str, tuple[int, ...]]) -> Path:
        tensors = [gguf_writer.RawTensor(n, 0, s, np.zeros(s, np.float32).tobytes()) for n, s in names.items()]
        return gguf_writer.write(tmp_path / "m.gguf", metadata, tensors)

    assert open_model(write(shapes)).spec.tied
    for extra in ({"blk.0.ffn_gate_inp.weight": (8, 64)}, {"blk.0.attn_sinks.weight": (4,)}):
        with pytest.raises(ModelFileError, match="not part of this family"):
            open_model(write({**shapes, **extra}))


def test_row_order_brings_neighbours_to_halves() -> None:
    order = neighbours_to_halves(2, 6)
    assert order.tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_llama3_scaling_keeps_fast_and_divides_slow() -> None:
    scaling = Facts({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192})  # fmt: skip
    plain = np.array(rope.plain(500_000.0, 128).frequencies)
    ratio = plain / np.array(rope.llama3(500_000.0, 128, scaling).frequencies)
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(8)
    assert np.all(np.diff(ratio) >= -1e-6) and np.any((ratio > 1.1) & (ratio < 7.9))


@pytest.mark.parametrize(
    ("kind", "scaling"),
    [
        (
            "llama3",
            {"factor": 0.0, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8},
        ),
        (
            "llama3",
            {"factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 4, "original_max_position_embeddings": 8},
        ),
        ("linear", {"factor": -2.0}),
        ("yarn", {"factor": 0.0, "original_max_position_embeddings": 64}),
    ],
)
def test_rope_scaling_out_of_range(kind: str, scaling: dict[str, float]) -> None:
    config = Facts({"max_position_embeddings": 128})
    with pytest.raises(ModelFileError, match="out of range"):
        rope.by_rule(config, Facts({"rope_type": kind, **scaling}), 10_000.0, 16)


@pytest.mark.parametrize("root", ["language_model.model.", "model.language_model."])
def test_gemma3_inside_a_model_with_a_vision_tower(root: str, tmp_path: Path) -> None:
    """The text model under a root and a text_config of its own, beside tensors that are not its."""
    sizes = tiny_models.sizes_of("gemma3")
    plain = open_model(tiny_models.write_hf(tmp_path / "plain", "gemma3"))
    weights = tiny_models.random_weights("gemma3", 0, sizes)
    named = {root + name.removeprefix("model."): values for name, values in weights.items()}
    tower = "vision_tower." if root.startswith("language") else "model.vision_tower."
    named[tower + "patch.weight"] = np.ones((4, 4), np.float32)
    folder = tmp_path / "whole"
    folder.mkdir()
    tensors = {name: ("F32", values.shape, values.tobytes()) for name, values in named.items()}
    safetensors_writer.write(folder / "model.safetensors", tensors)
    text = tiny_models.hf_config("gemma3", sizes)
    ends = {"eos_token_id": [1, 106]}
    del text["eos_token_id"]
    config = {"model_type": "gemma3", "text_config": text | {"model_type": "gemma3_text"}} | ends
    (folder / "config.json").write_text(json.dumps(config))
    opened = open_model(folder)
    assert opened.spec.eos == (1, 106)
    assert opened.spec.layers == plain.spec.layers
    ours, theirs = opened.network.layers[5].query, plain.network.layers[5].query
    np.testing.assert_array_equal(ours.decode(0, ours.n), theirs.decode(0, theirs.n))
