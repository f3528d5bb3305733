"""Tiny random models of every family, as GGUF files and as Hugging Face folders.

The same family, seed and sizes give the same float32 weights in both forms, so the two can be compared. GGUF rows of
llama's query and key are interleaved and gemma's norm weights include their +1, as real files have it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import gguf_writer
import numpy as np
import safetensors_writer
import tiny_vocabulary
from numpy.typing import NDArray

from kvern.formats import weights as formats

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")
GGUF_FORMATS = tuple(gguf_writer.TYPE_NUMBERS)
Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TinySizes:
    """Sizes in elements. Every matrix has rows of 256 or 512, so that each block format divides them."""

    hidden: int = 256
    intermediate: int = 512
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    vocab: int = 0
    context: int = 2048
    window: int = 24  # gemma3: of the layers that have one
    theta: float = 10_000.0
    eps: float = 1e-5
    tied: bool = True


def sizes_of(family: str, **changes: object) -> TinySizes:
    """The usual sizes of a family. gemma3 has six layers: its pattern is five with a window, then one without."""
    sizes = TinySizes(vocab=tiny_vocabulary.size(family), tied=family != "llama")
    if family == "gemma3":
        sizes = replace(sizes, layers=6, kv_heads=1, theta=1_000_000.0, eps=1e-6)
    return replace(sizes, **changes)


def random_weights(family: str, seed: int, sizes: TinySizes) -> dict[str, Array]:
    """Hugging Face names -> float32 arrays, as a Hugging Face file would hold them."""
    draw = np.random.default_rng([seed, FAMILIES.index(family)])
    shapes = _shapes(family, sizes)
    return {name: _random(draw, name, shape, family) for name, shape in shapes.items()}


def _random(draw: np.random.Generator, name: str, shape: tuple[int, ...], family: str) -> Array:
    values = draw.standard_normal(shape)
    if name.endswith("norm.weight"):
        values = 0.1 * values + (0.0 if family == "gemma3" else 1.0)
    elif len(shape) == 1 or "embed_tokens" in name:
        values = 0.1 * values
    else:
        values = values / np.sqrt(shape[1])
    return values.astype(np.float32)


def _shapes(family: str, s: TinySizes) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (s.vocab, s.hidden)}
    for layer in range(s.layers):
        for name, shape in _layer_shapes(family, s).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    shapes["model.norm.weight"] = (s.hidden,)
    if not s.tied:
        shapes["lm_head.weight"] = (s.vocab, s.hidden)
    return shapes


def _layer_shapes(family: str, s: TinySizes) -> dict[str, tuple[int, ...]]:
    queries, keys = s.heads * s.head_dim, s.kv_heads * s.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (s.hidden,),
        "self_attn.q_proj.weight": (queries, s.hidden),
        "self_attn.k_proj.weight": (keys, s.hidden),
        "self_attn.v_proj.weight": (keys, s.hidden),
        "self_attn.o_proj.weight": (s.hidden, queries),
        "post_attention_layernorm.weight": (s.hidden,),
        "mlp.gate_proj.weight": (s.intermediate, s.hidden),
        "mlp.up_proj.weight": (s.intermediate, s.hidden),
        "mlp.down_proj.weight": (s.hidden, s.intermediate),
    }
    if family == "qwen2":
        shapes |= {f"self_attn.{n}_proj.bias": (queries if n == "q" else keys,) for n in "qkv"}
    if family in ("qwen3", "gemma3"):
        shapes |= {f"self_attn.{n}_norm.weight": (s.head_dim,) for n in "qk"}
    if family == "gemma3":
        shapes |= {f"{n}_feedforward_layernorm.weight": (s.hidden,) for n in ("pre", "post")}
    return shapes


_GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GEMMA_NAMES = _GGUF_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(family: str, name: str) -> str:
    """The name that a GGUF file gives to a tensor of a Hugging Face file."""
    if name in _WHOLE:
        return _WHOLE[name]
    _, _, layer, *inner, kind = name.split(".")
    names = _GEMMA_NAMES if family == "gemma3" else _GGUF_NAMES
    return f"blk.{layer}.{names['.'.join(inner)]}.{kind}"


def _as_gguf_has_it(family: str, name: str, values: Array, s: TinySizes) -> Array:
    if family == "gemma3" and name.endswith("norm.weight"):
        return values + np.float32(1)
    if family == "llama" and (".q_proj." in name or ".k_proj." in name):
        heads = s.heads if ".q_proj." in name else s.kv_heads
        halves = values.reshape(heads, 2, s.head_dim // 2, -1)
        return halves.swapaxes(1, 2).reshape(values.shape)
    return values


def _gguf_metadata(family: str, s: TinySizes) -> dict[str, object]:
    facts: dict[str, object] = {
        "context_length": s.context,
        "embedding_length": s.hidden,
        "block_count": s.layers,
        "feed_forward_length": s.intermediate,
        "attention.head_count": s.heads,
        "attention.head_count_kv": s.kv_heads,
        "attention.layer_norm_rms_epsilon": s.eps,
        "rope.freq_base": s.theta,
    }
    if family == "llama":
        facts |= {"vocab_size": s.vocab, "rope.dimension_count": s.head_dim}
    if family in ("qwen3", "gemma3"):
        facts |= {"attention.key_length": s.head_dim, "attention.value_length": s.head_dim}
    if family == "gemma3":
        facts["attention.sliding_window"] = s.window
    general: dict[str, object] = {"general.architecture": family, "general.type": "model", "general.name": "tiny"}
    named = {f"{family}.{key}": value for key, value in facts.items()}
    return general | named | tiny_vocabulary.gguf_metadata(family) | {"general.quantization_version": 2}


def write_gguf(path: Path, family: str, weight_format: str = "F32", seed: int = 0, **changes: object) -> Path:
    """Write a model whose matrices are all in ``weight_format`` (vectors in F32); ``changes`` are of TinySizes."""
    s = sizes_of(family, **changes)
    tensors = []
    for name, values in random_weights(family, seed, s).items():
        kind = weight_format if values.ndim == 2 else "F32"
        matrix = _as_gguf_has_it(family, name, values, s).reshape(-1, values.shape[-1])
        data = formats.get(kind).encode(matrix).tobytes()
        tensors.append(
            gguf_writer.RawTensor(gguf_name(family, name), gguf_writer.TYPE_NUMBERS[kind], values.shape, data)
        )
    return gguf_writer.write(path, _gguf_metadata(family, s), tensors)


_ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
}


def hf_config(family: str, s: TinySizes, dtype: str = "F32") -> dict[str, object]:
    """What config.json holds."""
    architecture, model_type = _ARCHITECTURES[family]
    gemma = family == "gemma3"
    config: dict[str, object] = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": s.vocab,
        "hidden_size": s.hidden,
        "intermediate_size": s.intermediate,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "max_position_embeddings": s.context,
        "rms_norm_eps": s.eps,
        "rope_theta": s.theta,
        "tie_word_embeddings": s.tied,
        "torch_dtype": {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype],
        "bos_token_id": 2 if gemma else 1,
        "eos_token_id": 1 if gemma else 2,
    }
    if not gemma:
        return config | {"hidden_act": "silu"}
    kinds = ["full_attention" if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(s.layers)]
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": s.window,
        "sliding_window_pattern": 6,
        "layer_types": kinds,
        "rope_local_base_freq": 10_000.0,
        "query_pre_attn_scalar": s.head_dim,
    }


def write_hf(folder: Path, family: str, dtype: str = "F32", seed: int = 0, **changes: object) -> Path:
    """Write config.json, model.safetensors, tokenizer.json and tokenizer_config.json; ``dtype`` F32, F16 or BF16."""
    s = sizes_of(family, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    encode = formats.get(dtype).encode
    weights = {
        name: (dtype, values.shape, encode(values.reshape(-1, values.shape[-1])).tobytes())
        for name, values in random_weights(family, seed, s).items()
    }
    safetensors_writer.write(folder / "model.safetensors", weights)
    documents = {
        "config.json": hf_config(family, s, dtype),
        "tokenizer.json": tiny_vocabulary.tokenizer_json(family),
        "tokenizer_config.json": tiny_vocabulary.tokenizer_config(family),
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return folder
