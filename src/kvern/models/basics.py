"""What every supported family names in the same way, in GGUF metadata and in config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvern.models.facts import Facts
from kvern.models.spec import AttentionSpec, ModelSpec, require


@dataclass(frozen=True, slots=True)
class Basics:
    """Sizes in elements, ``context`` in tokens."""

    name: str
    hidden: int
    intermediate: int
    vocab: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    norm_eps: float
    tied: bool
    bos: int | None
    eos: tuple[int, ...]

    def __post_init__(self) -> None:
        require(0 < self.layers <= 10_000, f"{self.layers} layers is out of range")
        require(0 < self.heads <= 1 << 16, f"{self.heads} heads is out of range")
        require(0 < self.head_dim <= 1 << 16, f"head size {self.head_dim} is out of range")

    def spec(
        self, family: str, layers: tuple[AttentionSpec, ...], activation: str, embed_scale: float = 1.0
    ) -> ModelSpec:
        return ModelSpec(
            family=family,
            name=self.name,
            hidden=self.hidden,
            intermediate=self.intermediate,
            vocab=self.vocab,
            layers=layers,
            norm_eps=self.norm_eps,
            activation=activation,
            max_context=self.context,
            embed_scale=embed_scale,
            tied=self.tied,
            bos=self.bos,
            eos=self.eos,
        )


_END_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What a family may know of a GGUF file: its metadata, and the few tensors that decide shapes.

    ``vocab`` is the number of rows of the embedding table; ``tied`` says that there is no output matrix;
    ``rope_factors`` is the ``rope_freqs`` tensor.
    """

    metadata: Mapping[str, object]
    vocab: int
    tied: bool
    rope_factors: NDArray[np.float32] | None = None

    @property
    def general(self) -> Facts:
        return Facts(self.metadata)

    def basics(self, arch: Facts) -> Basics:
        """Raises ModelFileError for absent keys, experts, softcaps and partly rotated heads."""
        for key in ("expert_count", "attn_logit_softcapping", "final_logit_softcapping"):
            require(arch.number(key, 0.0) == 0, f"{key} is set: models with it are not supported")
        hidden, heads = arch.integer("embedding_length"), arch.integer("attention.head_count")
        require(heads > 0, f"{heads} heads is out of range")
        head_dim = arch.integer("attention.key_length", hidden // heads)
        require(arch.integer("attention.value_length", head_dim) == head_dim, "keys and values differ in size")
        rotated = arch.integer("rope.dimension_count", head_dim)
        require(rotated == head_dim, f"rotating {rotated} of {head_dim} elements of each head is not supported")
        return Basics(
            name=self.general.text("general.name", ""),
            hidden=hidden,
            intermediate=arch.integer("feed_forward_length"),
            vocab=self.vocab,
            layers=arch.integer("block_count"),
            heads=heads,
            kv_heads=arch.integer("attention.head_count_kv", heads),
            head_dim=head_dim,
            context=arch.integer("context_length"),
            norm_eps=arch.number("attention.layer_norm_rms_epsilon"),
            tied=self.tied,
            bos=next(iter(self.general.ids("tokenizer.ggml.bos_token_id")), None),
            eos=tuple(dict.fromkeys(i for key in _END_KEYS for i in self.general.ids(key))),
        )


def basics_from_hf(config: Facts) -> Basics:
    """``config`` is config.json over the family's values for keys it may leave out. Raises ModelFileError."""
    for key in ("num_experts", "num_local_experts", "attn_logit_softcapping", "final_logit_softcapping"):
        require(config.number(key, 0.0) == 0, f"{key} is set: models with it are not supported")
    require(
        not config.has("quantization_config"),
        "safetensors with a quantization_config are not supported; use a GGUF file or plain bf16",
    )
    rotated = config.number("partial_rotary_factor", 1.0)
    require(rotated == 1.0, f"rotating {rotated} of each head is not supported")
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    require(heads > 0, f"{heads} heads is out of range")
    return Basics(
        name=config.text("_name_or_path", ""),
        hidden=hidden,
        intermediate=config.integer("intermediate_size"),
        vocab=config.integer("vocab_size"),
        layers=config.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        head_dim=config.integer("head_dim", hidden // heads),
        context=config.integer("max_position_embeddings"),
        norm_eps=config.number("rms_norm_eps", 1e-6),
        tied=config.flag("tie_word_embeddings", False),
        bos=next(iter(config.ids("bos_token_id")), None),
        eos=config.ids("eos_token_id"),
    )


def windows_from_hf(config: Facts, layers: int, window: int | None, default: tuple[bool, ...]) -> list[int | None]:
    """The window of each layer from ``layer_types``, or from ``default`` (True: windowed) where absent."""
    kinds = config.texts("layer_types")
    require(kinds is None or len(kinds) >= layers, f"layer_types names fewer than {layers} layers")
    if kinds is not None:
        unknown = set(kinds) - {"full_attention", "sliding_attention"}
        require(not unknown, f"layers of kind {', '.join(sorted(unknown))} are not supported")
    windowed = default if kinds is None else tuple(kind == "sliding_attention" for kind in kinds[:layers])
    require(window is not None or not any(windowed), "layers are windowed but sliding_window is absent")
    return [window if flag else None for flag in windowed]
