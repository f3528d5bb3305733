"""What kvern knows of a model before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kvern.core.errors import ModelFileError
from kvern.kernels.ops import ACTIVATIONS, AttentionSpec, RopeSpec

__all__ = ["AttentionSpec", "ModelSpec", "RopeSpec", "SamplingDefaults", "require", "with_generation"]


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What the model's makers suggest (generation_config.json); None where they say nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shapes and constants of a decoder-only model. Sizes in elements, context in tokens."""

    family: str
    name: str
    hidden: int
    intermediate: int
    vocab: int
    layers: tuple[AttentionSpec, ...]
    norm_eps: float
    activation: str
    max_context: int
    embed_scale: float = 1.0
    tied: bool = False  # the output matrix is the embedding table
    bos: int | None = None
    eos: tuple[int, ...] = ()
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)

    def __post_init__(self) -> None:
        """Refuse shapes that no back end could run. Raises ModelFileError."""
        require(self.activation in ACTIVATIONS, f"activation {self.activation!r} is not one of {ACTIVATIONS}")
        for label, value in (("hidden", self.hidden), ("intermediate", self.intermediate), ("vocab", self.vocab)):
            require(0 < value < 1 << 31, f"{label} size {value} is out of range")
        require(self.max_context > 0, f"context length {self.max_context} is out of range")
        require(len(self.layers) > 0, "the model has no layers")
        for layer in self.layers:
            require(
                layer.kv_heads > 0 and layer.heads % layer.kv_heads == 0,
                f"{layer.heads} heads cannot share {layer.kv_heads} KV heads",
            )
            require(layer.head_dim > 0 and layer.head_dim % 2 == 0, f"head size {layer.head_dim} is not even")
            require(layer.rope.dim == layer.head_dim, "rotating a part of each head is not supported")
            require(layer.window is None or layer.window > 0, f"sliding window {layer.window} is out of range")

    @property
    def units(self) -> int:
        return 2 * len(self.layers)


def with_generation(spec: ModelSpec, config: Mapping[str, object]) -> ModelSpec:
    """``spec`` with what generation_config.json adds: end tokens in place of the model's, sampling defaults.

    Values of the wrong type are left out: they are suggestions. ``config`` may be empty.
    """
    ends = config.get("eos_token_id")
    ids = ends if isinstance(ends, list) else [ends]
    eos = tuple(i for i in ids if isinstance(i, int) and not isinstance(i, bool) and i >= 0)
    sampling = SamplingDefaults(
        temperature=_number(config, "temperature"),
        top_p=_number(config, "top_p"),
        top_k=None if (top_k := _number(config, "top_k")) is None else int(top_k),
        min_p=_number(config, "min_p"),
        repetition_penalty=_number(config, "repetition_penalty"),
    )
    return replace(spec, eos=eos or spec.eos, sampling=sampling)


def _number(config: Mapping[str, object], key: str) -> float | None:
    value = config.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def require(condition: bool, reason: str) -> None:
    """Raise ModelFileError(reason) unless ``condition``."""
    if not condition:
        raise ModelFileError(reason)
