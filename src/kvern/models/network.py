"""A model with its weights, as a back end takes it: `Model` is the `Network` of `kvern.kernels.ops`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

from kvern.kernels.ops import AttentionSpec, Ops, Vector, Weight
from kvern.models.spec import ModelSpec

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """One layer. Optional tensors are None where the family or the file has none."""

    attention_norm: Vector
    query: Weight
    key: Weight
    value: Weight
    attention_output: Weight
    feed_forward_norm: Vector
    gate: Weight
    up: Weight
    down: Weight
    query_bias: Vector | None = None
    key_bias: Vector | None = None
    value_bias: Vector | None = None
    attention_output_bias: Vector | None = None
    gate_bias: Vector | None = None
    up_bias: Vector | None = None
    down_bias: Vector | None = None
    query_norm: Vector | None = None
    key_norm: Vector | None = None
    attention_post_norm: Vector | None = None
    feed_forward_post_norm: Vector | None = None


class Forward(Protocol):
    """The forward pass of a family: three functions of its file."""

    def embed(self, ops: Ops[T], model: Model) -> T: ...

    def unit(self, ops: Ops[T], model: Model, unit: int, x: T) -> T: ...

    def head(self, ops: Ops[T], model: Model, x: T) -> T: ...


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """Spec, weights and forward pass together."""

    spec: ModelSpec
    forward: Forward
    embedding: Weight
    layers: tuple[LayerWeights, ...]
    output_norm: Vector
    output: Weight  # the embedding itself when the spec is tied

    @property
    def attention(self) -> tuple[AttentionSpec, ...]:
        return self.spec.layers

    @property
    def hidden_size(self) -> int:
        return self.spec.hidden

    @property
    def vocab_size(self) -> int:
        return self.spec.vocab

    def embed(self, ops: Ops[T]) -> T:
        return self.forward.embed(ops, self)

    def unit(self, ops: Ops[T], unit: int, x: T) -> T:
        return self.forward.unit(ops, self, unit, x)

    def head(self, ops: Ops[T], x: T) -> T:
        return self.forward.head(ops, self, x)

    def weights(self) -> tuple[Weight, ...]:
        """Every distinct matrix in the order of use; a tied output is the embedding and appears once."""
        found: list[Weight] = [self.embedding]
        for w in self.layers:
            found += [w.query, w.key, w.value, w.attention_output, w.gate, w.up, w.down]
        return tuple(found if self.output is self.embedding else [*found, self.output])

    def in_format(self, weight_format: str) -> Model:
        """The same model with every matrix brought to another format as a back end reads it; "file": as it is."""
        if weight_format == "file":
            return self
        embedding = self.embedding.as_format(weight_format)
        tied = self.output is self.embedding
        return replace(
            self,
            embedding=embedding,
            layers=tuple(_in_format(layer, weight_format) for layer in self.layers),
            output=embedding if tied else self.output.as_format(weight_format),
        )

    def with_activation(self, name: str) -> Model:
        """The same model whose layers bring the inputs of their matrices to the activation format ``name``.

        The embedding and the output keep their own.
        """
        layers = tuple(_with_activation(layer, name) for layer in self.layers)
        return replace(self, layers=layers)


def _with_activation(layer: LayerWeights, name: str) -> LayerWeights:
    found = {f.name: getattr(layer, f.name) for f in fields(LayerWeights)}
    changed: dict[str, Any] = {n: replace(w, activation=name) for n, w in found.items() if isinstance(w, Weight)}
    return replace(layer, **changed)


def _in_format(layer: LayerWeights, weight_format: str) -> LayerWeights:
    found = {f.name: getattr(layer, f.name) for f in fields(LayerWeights)}
    changed: dict[str, Any] = {n: w.as_format(weight_format) for n, w in found.items() if isinstance(w, Weight)}
    return replace(layer, **changed)
