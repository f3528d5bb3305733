"""Gemma 3 (text): norms before and after each sublayer, QK-norm, sliding-window layers with one global in six."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from kvern.core.errors import ModelFileError
from kvern.kernels.ops import AttentionSpec, Ops
from kvern.models import rope
from kvern.models.basics import Basics, GgufFacts, basics_from_hf, windows_from_hf
from kvern.models.facts import Facts
from kvern.models.network import Model
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

T = TypeVar("T")


_HF_NORMS = {
    "attention_post_norm": "model.layers.{layer}.post_attention_layernorm.weight",
    "feed_forward_norm": "model.layers.{layer}.pre_feedforward_layernorm.weight",
    "feed_forward_post_norm": "model.layers.{layer}.post_feedforward_layernorm.weight",
}
_GGUF_NORMS = {
    "attention_post_norm": "blk.{layer}.post_attention_norm.weight",
    "feed_forward_post_norm": "blk.{layer}.post_ffw_norm.weight",
}
GGUF = Layout(
    whole=GGUF_WHOLE, layer={**GGUF_LAYER, **GGUF_HEAD_NORMS, **_GGUF_NORMS}, optional=BIASES, ignored=GGUF_IGNORED
)
# Files of the models with a vision tower put the text model under a root of its own. Norms are stored minus one.
HF = Layout(
    whole=HF_WHOLE,
    layer={**HF_LAYER, **HF_HEAD_NORMS, **_HF_NORMS},
    optional=BIASES,
    roots=("model.", "language_model.model.", "model.language_model."),
    norm_offset=1.0,
    ignored=HF_IGNORED,
    other_parts=("model.vision_tower.", "model.multi_modal_projector."),
)

_HF_DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_GLOBAL_THETA, _LOCAL_THETA, _PATTERN = 1_000_000.0, 10_000.0, 6
_LAYERS_OF_27B = 62  # the one size whose GGUF files scale scores by hidden / heads, without saying so


def spec_from_gguf(facts: GgufFacts) -> ModelSpec:
    arch = facts.general.under("gemma3.")
    basics = facts.basics(arch)
    by_layer = arch.get("attention.sliding_window_pattern")
    if isinstance(by_layer, list):
        windowed = tuple(bool(flag) for flag in by_layer)
        require(len(windowed) >= basics.layers, "attention.sliding_window_pattern names too few layers")
    else:
        windowed = _pattern(basics.layers, arch.integer("attention.sliding_window_pattern", _PATTERN))
    window = arch.integer("attention.sliding_window") if any(windowed) else None
    width = basics.hidden // basics.heads if basics.layers == _LAYERS_OF_27B else basics.head_dim
    everywhere = rope.from_gguf(
        arch, arch.number("rope.freq_base", _GLOBAL_THETA), basics.head_dim, facts.rope_factors
    )
    nearby = rope.plain(arch.number("rope.freq_base_swa", _LOCAL_THETA), basics.head_dim)
    windows = [window if flag else None for flag in windowed[: basics.layers]]
    scale = arch.number("attention.scale", width**-0.5)
    return _spec(basics, windows, scale, (everywhere, rope.ScaledRope(nearby)))


def spec_from_hf(config: Facts) -> ModelSpec:
    config = _text_part(config).over(_HF_DEFAULTS)
    basics = basics_from_hf(config)
    activation = config.text("hidden_activation", config.text("hidden_act", "gelu_pytorch_tanh"))
    require(activation == "gelu_pytorch_tanh", f"activation {activation!r} is not supported in this family")
    require(not config.flag("use_bidirectional_attention", False), "attention to later tokens is not supported")
    window = config.integer("sliding_window", 4096)
    default = _pattern(basics.layers, config.integer("sliding_window_pattern", _PATTERN))
    windows = windows_from_hf(config, basics.layers, window, default)
    scale = config.number("query_pre_attn_scalar", 256) ** -0.5
    return _spec(basics, windows, scale, _hf_ropes(config, basics.head_dim))


def _text_part(config: Facts) -> Facts:
    """The language model's own config where the file describes a larger model around it."""
    text = config.table("text_config")
    if text is None:
        return config
    above = {key: config.get(key) for key in ("eos_token_id", "bos_token_id", "tie_word_embeddings")}
    return text.over({key: value for key, value in above.items() if value is not None})


def _hf_ropes(config: Facts, dim: int) -> tuple[rope.ScaledRope, rope.ScaledRope]:
    """(global, local). Scaling in the older spelling belongs to the global layers alone."""
    parameters = config.table("rope_parameters")
    if parameters is None:
        scaled = rope.by_rule(config, config.table("rope_scaling"), config.number("rope_theta", _GLOBAL_THETA), dim)
        return scaled, rope.ScaledRope(rope.plain(config.number("rope_local_base_freq", _LOCAL_THETA), dim))
    found = []
    for kind, theta in (("full_attention", _GLOBAL_THETA), ("sliding_attention", _LOCAL_THETA)):
        rule = parameters.table(kind)
        found.append(rope.by_rule(config, rule, theta if rule is None else rule.number("rope_theta", theta), dim))
    return found[0], found[1]


def _pattern(layers: int, every: int) -> tuple[bool, ...]:
    """Which layers are windowed: all but each ``every``-th."""
    if every <= 0:
        raise ModelFileError(f"sliding_window_pattern {every} is out of range")
    return tuple((layer + 1) % every != 0 for layer in range(layers))


def _spec(
    basics: Basics, windows: list[int | None], scale: float, ropes: tuple[rope.ScaledRope, rope.ScaledRope]
) -> ModelSpec:
    layers = []
    for window in windows:
        scaled = ropes[0] if window is None else ropes[1]
        layers.append(
            AttentionSpec(
                heads=basics.heads,
                kv_heads=basics.kv_heads,
                head_dim=basics.head_dim,
                scale=scale * scaled.magnitude**2,
                window=window,
                rope=scaled.rope,
            )
        )
    embed_scale = float(np.sqrt(np.float32(basics.hidden)))
    return basics.spec("gemma3", tuple(layers), "gelu_tanh", embed_scale)


def embed(ops: Ops[T], model: Model) -> T:
    return ops.embed(model.embedding, model.spec.embed_scale)


def unit(ops: Ops[T], model: Model, unit: int, x: T) -> T:
    eps, w, attention = model.spec.norm_eps, model.layers[unit // 2], model.spec.layers[unit // 2]
    if unit % 2 == 0:
        assert w.query_norm is not None and w.key_norm is not None and w.attention_post_norm is not None
        h = ops.norm(x, w.attention_norm, eps)
        q = ops.head_norm(ops.linear(h, w.query, w.query_bias), w.query_norm, attention.heads, eps)
        k = ops.head_norm(ops.linear(h, w.key, w.key_bias), w.key_norm, attention.kv_heads, eps)
        v = ops.linear(h, w.value, w.value_bias)
        h = ops.linear(ops.attend(q, k, v, unit // 2, attention), w.attention_output, w.attention_output_bias)
        return ops.add(x, ops.norm(h, w.attention_post_norm, eps))
    assert w.feed_forward_post_norm is not None
    h = ops.norm(x, w.feed_forward_norm, eps)
    gate, up = ops.linear(h, w.gate, w.gate_bias), ops.linear(h, w.up, w.up_bias)
    h = ops.linear(ops.gated(gate, up, model.spec.activation), w.down, w.down_bias)
    return ops.add(x, ops.norm(h, w.feed_forward_post_norm, eps))


def head(ops: Ops[T], model: Model, x: T) -> T:
    return ops.linear(ops.norm(x, model.output_norm, model.spec.norm_eps), model.output)
