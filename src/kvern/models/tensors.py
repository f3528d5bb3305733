"""How a family's tensors are called in its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """One kind of file of one family.

    ``whole`` and ``layer`` map the fields of Model and LayerWeights to tensor names; names of ``layer`` contain
    ``{layer}``. Fields in ``optional`` may be absent. ``roots`` are what names may begin with in place of the first
    root. ``norm_offset`` is added to every norm weight. Heads of ``interleaved`` fields have their rotary pairs side
    by side (2 i, 2 i + 1) in the file and are brought to halves (i, i + head_dim / 2). Tensors whose name ends in
    one of ``ignored`` do not matter, those that begin with one of ``other_parts`` are another model in the same file
    (a vision tower); any other tensor under the root that is not named here is an error.
    """

    whole: Mapping[str, str]
    layer: Mapping[str, str]
    optional: frozenset[str]
    roots: tuple[str, ...] = ("",)
    norm_offset: float = 0.0
    interleaved: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    other_parts: tuple[str, ...] = ()


BIASES = frozenset(
    {"query_bias", "key_bias", "value_bias", "attention_output_bias", "gate_bias", "up_bias", "down_bias"}
)

GGUF_WHOLE = {"embedding": "token_embd.weight", "output_norm": "output_norm.weight", "output": "output.weight"}
GGUF_IGNORED = ("rope_freqs.weight", "attn_rot_embd", "rope_factors_long.weight", "rope_factors_short.weight")
_GGUF_MATRICES = {
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "attention_output": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
GGUF_LAYER = {
    "attention_norm": "blk.{layer}.attn_norm.weight",
    "feed_forward_norm": "blk.{layer}.ffn_norm.weight",
    **{field: f"blk.{{layer}}.{name}.weight" for field, name in _GGUF_MATRICES.items()},
    **{f"{field}_bias": f"blk.{{layer}}.{name}.bias" for field, name in _GGUF_MATRICES.items()},
}
GGUF_HEAD_NORMS = {
    "query_norm": "blk.{layer}.attn_q_norm.weight",
    "key_norm": "blk.{layer}.attn_k_norm.weight",
}

HF_WHOLE = {"embedding": "model.embed_tokens.weight", "output_norm": "model.norm.weight", "output": "lm_head.weight"}
HF_IGNORED = ("rotary_emb.inv_freq",)
_HF_MATRICES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
HF_LAYER = {
    "attention_norm": "model.layers.{layer}.input_layernorm.weight",
    "feed_forward_norm": "model.layers.{layer}.post_attention_layernorm.weight",
    **{field: f"model.layers.{{layer}}.{name}.weight" for field, name in _HF_MATRICES.items()},
    **{f"{field}_bias": f"model.layers.{{layer}}.{name}.bias" for field, name in _HF_MATRICES.items()},
}
HF_HEAD_NORMS = {
    "query_norm": "model.layers.{layer}.self_attn.q_norm.weight",
    "key_norm": "model.layers.{layer}.self_attn.k_norm.weight",
}
