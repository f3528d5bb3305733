"""Qwen2 and Qwen2.5: Llama's forward pass with biases on q, k and v, and windows on the upper layers if asked."""

from __future__ import annotations

from dataclasses import replace

from kvern.kernels.ops import AttentionSpec
from kvern.models import rope
from kvern.models.basics import Basics, GgufFacts, basics_from_hf, windows_from_hf
from kvern.models.facts import Facts
from kvern.models.llama import embed, head, unit
from kvern.models.spec import ModelSpec, require
from kvern.models.tensors import (
    BIASES,
    GGUF_IGNORED,
    GGUF_LAYER,
    GGUF_WHOLE,
    HF_IGNORED,
    HF_LAYER,
    HF_WHOLE,
    Layout,
)

__all__ = [
    "GGUF", "HF", "attention_layers", "embed", "head", "spec_from_gguf",
    "spec_from_hf", "unit",
]  # fmt: skip


_OPTIONAL = BIASES - {"query_bias", "key_bias", "value_bias"}
GGUF = Layout(whole=GGUF_WHOLE, layer=GGUF_LAYER, optional=_OPTIONAL, ignored=GGUF_IGNORED)
HF = Layout(whole=HF_WHOLE, layer=HF_LAYER, optional=_OPTIONAL, ignored=HF_IGNORED)

HF_DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}


def spec_from_gguf(facts: GgufFacts) -> ModelSpec:
    arch = facts.general.under("qwen2.")
    basics = facts.basics(arch)
    scaled = rope.from_gguf(arch, arch.number("rope.freq_base", 10_000.0), basics.head_dim, facts.rope_factors)
    return basics.spec("qwen2", attention_layers(basics, scaled, [None] * basics.layers), "silu")


def spec_from_hf(config: Facts) -> ModelSpec:
    config = config.over(HF_DEFAULTS)
    basics = basics_from_hf(config)
    activation = config.text("hidden_act", "silu")
    require(activation == "silu", f"activation {activation!r} is not supported in this family")
    layers = attention_layers(
        basics, rope.from_hf(config, basics.head_dim, 10_000.0), hf_windows(config, basics.layers)
    )
    return basics.spec("qwen2", layers, "silu")


def hf_windows(config: Facts, layers: int) -> list[int | None]:
    """The window of each layer: layers from ``max_window_layers`` on have one, if ``use_sliding_window`` is set."""
    if not config.flag("use_sliding_window", False):
        return [None] * layers
    first = config.integer("max_window_layers", 28)
    default = tuple(layer >= first for layer in range(layers))
    return windows_from_hf(config, layers, config.integer("sliding_window", 4096), default)


def attention_layers(basics: Basics, scaled: rope.ScaledRope, windows: list[int | None]) -> tuple[AttentionSpec, ...]:
    """One attention for all layers but for the window."""
    plain = AttentionSpec(
        heads=basics.heads,
        kv_heads=basics.kv_heads,
        head_dim=basics.head_dim,
        scale=basics.head_dim**-0.5 * scaled.magnitude**2,
        window=None,
        rope=scaled.rope,
    )
    return tuple(replace(plain, window=window) for window in windows)
