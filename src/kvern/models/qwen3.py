"""Qwen3 (dense): Llama's shape with an RMSNorm on every head of q and k, and heads of a size of their own."""

from __future__ import annotations

from typing import TypeVar

from kvern.kernels.ops import Ops
from kvern.models import rope
from kvern.models.basics import GgufFacts, basics_from_hf
from kvern.models.facts import Facts
from kvern.models.llama import embed, head
from kvern.models.network import Model
from kvern.models.qwen2 import HF_DEFAULTS, attention_layers, hf_windows
from kvern.models.spec import ModelSpec, require
from kvern.models.tensors import (
    BIASES,
    GGUF_HEAD_NORMS,
    GGUF_IGNORED,
    GGUF_LAYER,
    GGUF_WHOLE,
    HF_HEAD_NORMS,
    HF_IGNORED,
    HF_LAYER,
    HF_WHOLE,
    Layout,
)

__all__ = [
    "GGUF", "HF", "embed", "head", "spec_from_gguf", "spec_from_hf", "unit",
]  # fmt: skip

T = TypeVar("T")


GGUF = Layout(whole=GGUF_WHOLE, layer={**GGUF_LAYER, **GGUF_HEAD_NORMS}, optional=BIASES, ignored=GGUF_IGNORED)
HF = Layout(whole=HF_WHOLE, layer={**HF_LAYER, **HF_HEAD_NORMS}, optional=BIASES, ignored=HF_IGNORED)


def spec_from_gguf(facts: GgufFacts) -> ModelSpec:
    arch = facts.general.under("qwen3.")
    basics = facts.basics(arch)
    scaled = rope.from_gguf(arch, arch.number("rope.freq_base", 10_000.0), basics.head_dim, facts.rope_factors)
    return basics.spec("qwen3", attention_layers(basics, scaled, [None] * basics.layers), "silu")


def spec_from_hf(config: Facts) -> ModelSpec:
    config = config.over({**HF_DEFAULTS, "head_dim": 128})
    basics = basics_from_hf(config)
    activation = config.text("hidden_act", "silu")
    require(activation == "silu", f"activation {activation!r} is not supported in this family")
    layers = attention_layers(
        basics, rope.from_hf(config, basics.head_dim, 10_000.0), hf_windows(config, basics.layers)
    )
    return basics.spec("qwen3", layers, "silu")


def unit(ops: Ops[T], model: Model, unit: int, x: T) -> T:
    eps, w, attention = model.spec.norm_eps, model.layers[unit // 2], model.spec.layers[unit // 2]
    if unit % 2 == 0:
        assert w.query_norm is not None and w.key_norm is not None
        h = ops.norm(x, w.attention_norm, eps)
        q = ops.head_norm(ops.linear(h, w.query, w.query_bias), w.query_norm, attention.heads, eps)
        k = ops.head_norm(ops.linear(h, w.key, w.key_bias), w.key_norm, attention.kv_heads, eps)
        v = ops.linear(h, w.value, w.value_bias)
        h = ops.attend(q, k, v, unit // 2, attention)
        return ops.add(x, ops.linear(h, w.attention_output, w.attention_output_bias))
    h = ops.norm(x, w.feed_forward_norm, eps)
    gate, up = ops.linear(h, w.gate, w.gate_bias), ops.linear(h, w.up, w.up_bias)
    h = ops.gated(gate, up, model.spec.activation)
    return ops.add(x, ops.linear(h, w.down, w.down_bias))
