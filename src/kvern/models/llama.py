"""Llama (1 to 3.x, SmolLM2 and others that say they are one): RMSNorm, rotary attention, SwiGLU."""

from __future__ import annotations

from typing import TypeVar

from kvern.kernels.ops import AttentionSpec, Ops
from kvern.models import rope
from kvern.models.basics import Basics, GgufFacts, basics_from_hf
from kvern.models.facts import Facts
from kvern.models.network import Model
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

T = TypeVar("T")


# GGUF files of this family rotate neighbouring elements: their query and key rows were reordered for that.
GGUF = Layout(
    whole=GGUF_WHOLE,
    layer=GGUF_LAYER,
    optional=BIASES,
    interleaved=frozenset({"query", "query_bias", "key", "key_bias"}),
    ignored=GGUF_IGNORED,
)
HF = Layout(whole=HF_WHOLE, layer=HF_LAYER, optional=BIASES, ignored=HF_IGNORED)

_HF_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def spec_from_gguf(facts: GgufFacts) -> ModelSpec:
    arch = facts.general.under("llama.")
    basics = facts.basics(arch)
    theta = arch.number("rope.freq_base", 10_000.0)
    return _spec(basics, rope.from_gguf(arch, theta, basics.head_dim, facts.rope_factors))


def spec_from_hf(config: Facts) -> ModelSpec:
    config = config.over(_HF_DEFAULTS)
    basics = basics_from_hf(config)
    activation = config.text("hidden_act", "silu")
    require(activation == "silu", f"activation {activation!r} is not supported in this family")
    return _spec(basics, rope.from_hf(config, basics.head_dim, 10_000.0))


def _spec(basics: Basics, scaled: rope.ScaledRope) -> ModelSpec:
    attention = AttentionSpec(
        heads=basics.heads,
        kv_heads=basics.kv_heads,
        head_dim=basics.head_dim,
        scale=basics.head_dim**-0.5 * scaled.magnitude**2,
        window=None,
        rope=scaled.rope,
    )
    return basics.spec("llama", (attention,) * basics.layers, "silu")


def embed(ops: Ops[T], model: Model) -> T:
    return ops.embed(model.embedding, model.spec.embed_scale)


def unit(ops: Ops[T], model: Model, unit: int, x: T) -> T:
    eps, w = model.spec.norm_eps, model.layers[unit // 2]
    if unit % 2 == 0:
        h = ops.norm(x, w.attention_norm, eps)
        q = ops.linear(h, w.query, w.query_bias)
        k = ops.linear(h, w.key, w.key_bias)
        v = ops.linear(h, w.value, w.value_bias)
        h = ops.attend(q, k, v, unit // 2, model.spec.layers[unit // 2])
        return ops.add(x, ops.linear(h, w.attention_output, w.attention_output_bias))
    h = ops.norm(x, w.feed_forward_norm, eps)
    gate, up = ops.linear(h, w.gate, w.gate_bias), ops.linear(h, w.up, w.up_bias)
    h = ops.gated(gate, up, model.spec.activation)
    return ops.add(x, ops.linear(h, w.down, w.down_bias))


def head(ops: Ops[T], model: Model, x: T) -> T:
    return ops.linear(ops.norm(x, model.output_norm, model.spec.norm_eps), model.output)
