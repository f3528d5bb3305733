"""The sizes that every supported family names in the same way, in GGUF metadata and in config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvern.models.facts import Facts
from kvern.models.spec import require


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes in elements, ``context`` in tokens."""

    hidden: int
    intermediate: int
    vocab: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    norm_eps: float

    def __post_init__(self) -> None:
        require(0 < self.layers <= 10_000, f"{self.layers} layers is out of range")
        require(0 < self.heads <= 1 << 16, f"{self.heads} heads is out of range")
        require(0 < self.head_dim <= 1 << 16, f"head size {self.head_dim} is out of range")


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

    def end_tokens(self, texts: tuple[str, ...]) -> tuple[int, ...]:
        """Ids that end a text: those the file names, then those of its vocabulary written like one of ``texts``."""
        general = self.general
        found = [i for key in ("eos", "eot", "eom") for i in general.ids(f"tokenizer.ggml.{key}_token_id")]
        vocabulary = general.texts("tokenizer.ggml.tokens") or ()
        found += [index for index, text in enumerate(vocabulary) if text in texts]
        return tuple(dict.fromkeys(found))

    def bos(self) -> int | None:
        ids = self.general.ids("tokenizer.ggml.bos_token_id")
        return ids[0] if ids else None


def sizes_from_gguf(facts: GgufFacts, arch: Facts) -> Sizes:
    """Raises ModelFileError for absent keys, experts, softcaps and partly rotated heads."""
    for key in ("expert_count", "attn_logit_softcapping", "final_logit_softcapping"):
        require(arch.number(key, 0.0) == 0, f"{key} is set: models with it are not supported")
    hidden, heads = arch.integer("embedding_length"), arch.integer("attention.head_count")
    require(heads > 0, f"{heads} heads is out of range")
    head_dim = arch.integer("attention.key_length", hidden // heads)
    require(arch.integer("attention.value_length", head_dim) == head_dim, "keys and values of different sizes")
    rotated = arch.integer("rope.dimension_count", head_dim)
    require(rotated == head_dim, f"rotating {rotated} of {head_dim} elements of each head is not supported")
    return Sizes(
        hidden=hidden,
        intermediate=arch.integer("feed_forward_length"),
        vocab=facts.vocab,
        layers=arch.integer("block_count"),
        heads=heads,
        kv_heads=arch.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        context=arch.integer("context_length"),
        norm_eps=arch.number("attention.layer_norm_rms_epsilon"),
    )


def sizes_from_hf(config: Facts, defaults: Mapping[str, int | float]) -> Sizes:
    """``defaults`` are the family's values for keys that its config.json may leave out. Raises ModelFileError."""
    for key in ("num_experts", "num_local_experts", "attn_logit_softcapping", "final_logit_softcapping"):
        require(config.number(key, 0.0) == 0, f"{key} is set: models with it are not supported")
    quantised = config.get("quantization_config")
    require(quantised is None, "safetensors with a quantization_config are not supported; use a GGUF or bf16 file")
    asked = {key: config.integer(key, int(defaults[key]) if key in defaults else None) for key in _HF_INTEGERS}
    heads = asked["num_attention_heads"]
    require(heads > 0, f"{heads} heads is out of range")
    head_dim = config.integer("head_dim", int(defaults.get("head_dim", asked["hidden_size"] // heads)))
    rotated = config.number("partial_rotary_factor", 1.0)
    require(rotated == 1.0, f"rotating {rotated} of each head is not supported")
    return Sizes(
        hidden=asked["hidden_size"],
        intermediate=asked["intermediate_size"],
        vocab=asked["vocab_size"],
        layers=asked["num_hidden_layers"],
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", int(defaults.get("num_key_value_heads", heads))),
        head_dim=head_dim,
        context=asked["max_position_embeddings"],
        norm_eps=config.number("rms_norm_eps", float(defaults.get("rms_norm_eps", 1e-6))),
    )


_HF_INTEGERS = (
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
