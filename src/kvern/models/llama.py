"""Llama (1 to 3.x, SmolLM2 and others that say they are one): RMSNorm, rotary attention, SwiGLU."""

from __future__ import annotations

from typing import TypeVar

from kvern.kernels.ops import AttentionSpec, Ops
from kvern.models import rope
from kvern.models.facts import Facts
from kvern.models.network import Model
from kvern.models.sizes import GgufFacts, Sizes, sizes_from_gguf, sizes_from_hf
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
    optional=BIASES | {"output"},
    interleaved=frozenset({"query", "query_bias", "key", "key_bias"}),
    ignored=GGUF_IGNORED,
)
HF = Layout(whole=HF_WHOLE, layer=HF_LAYER, optional=BIASES, ignored=HF_IGNORED)

END_TOKENS = ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "<|im_end|>", "<|endoftext|>")
_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}


def spec_from_gguf(facts: GgufFacts) -> ModelSpec:
    arch = facts.general.under("llama.")
    sizes = sizes_from_gguf(facts, arch)
    theta = arch.number("rope.freq_base", 10_000.0)
    scaled = rope.from_gguf(arch, theta, sizes.head_dim, facts.rope_factors)
    return _spec(
        sizes,
        scaled,
        name=facts.general.text("general.name", "llama"),
        tied=facts.tied,
        bos=facts.bos(),
        eos=facts.end_tokens(END_TOKENS),
    )


def spec_from_hf(config: Facts) -> ModelSpec:
    sizes = sizes_from_hf(config, _DEFAULTS)
    activation = config.text("hidden_act", "silu")
    require(activation == "silu", f"activation {activation!r} is not supported in this family")
    bos = config.ids("bos_token_id") or (1,)
    return _spec(
        sizes,
        rope.of_hf_model(config, sizes.head_dim, 10_000.0),
        name=config.text("_name_or_path", "llama"),
        tied=config.flag("tie_word_embeddings", False),
        bos=bos[0],
        eos=config.ids("eos_token_id") or (2,),
    )


def _spec(sizes: Sizes, scaled: rope.ScaledRope, **named: object) -> ModelSpec:
    attention = AttentionSpec(
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        scale=sizes.head_dim**-0.5 * scaled.magnitude**2,
        window=None,
        rope=scaled.rope,
    )
    return sizes.spec("llama", (attention,) * sizes.layers, "silu", **named)


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
