"""Models under kvern's own names: what a quantised file holds, with no family's quirks left.

A tensor is called ``embedding``, ``output``, ``output_norm`` or ``layers.{layer}.{field of LayerWeights}``. Rows of
queries and keys are in the order kvern rotates them, norm weights include their offset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

import msgspec

from kvern.core.errors import ModelFileError
from kvern.kernels.ops import AttentionSpec, Vector, Weight
from kvern.models import registry
from kvern.models.build import MATRIX_SHAPES, vector_width
from kvern.models.network import LayerWeights, Model
from kvern.models.registry import Family
from kvern.models.spec import ModelSpec, require
from kvern.weights.quantised_file import HEADER_SUFFIX, QuantisedFile

EMBEDDING, OUTPUT, OUTPUT_NORM = "embedding", "output", "output_norm"
MAX_LAYERS = 10_000


def layer_name(layer: int, field: str) -> str:
    return f"layers.{layer}.{field}"


def matrices(model: Model) -> Iterator[tuple[str, Weight]]:
    """Every distinct matrix with its canonical name, in the order of use; a tied output is the embedding."""
    yield EMBEDDING, model.embedding
    for index, layer in enumerate(model.layers):
        for field in fields(LayerWeights):
            found = getattr(layer, field.name)
            if isinstance(found, Weight):
                yield layer_name(index, field.name), found
    if model.output is not model.embedding:
        yield OUTPUT, model.output


def vectors(model: Model) -> Iterator[tuple[str, Vector]]:
    """Every norm and bias with its canonical name."""
    for index, layer in enumerate(model.layers):
        for field in fields(LayerWeights):
            found = getattr(layer, field.name)
            if isinstance(found, Vector):
                yield layer_name(index, field.name), found
    yield OUTPUT_NORM, model.output_norm


def with_matrices(model: Model, found: Mapping[str, Weight]) -> Model:
    """``model`` with the matrices of these canonical names in place of its own; a tied output is the embedding."""
    layers = []
    for index, layer in enumerate(model.layers):
        prefix = layer_name(index, "")
        changed: dict[str, Any] = {
            item.name: found[prefix + item.name] for item in fields(LayerWeights) if prefix + item.name in found
        }
        layers.append(replace(layer, **changed))
    embedding = found.get(EMBEDDING, model.embedding)
    output = embedding if model.output is model.embedding else found.get(OUTPUT, model.output)
    return replace(model, embedding=embedding, layers=tuple(layers), output=output)


def spec_as_json(spec: ModelSpec) -> dict[str, Any]:
    """What a quantised file holds as ``spec``."""
    found: dict[str, Any] = msgspec.to_builtins(spec)
    return found


def spec_from_json(described: dict[str, Any], where: str) -> ModelSpec:
    """Raises ModelFileError, beginning with ``where``, for anything that is not a whole and finite spec."""
    try:
        spec = msgspec.convert(described, ModelSpec)
    except (msgspec.ValidationError, ModelFileError) as error:
        raise ModelFileError(f"{where}: its model description is wrong: {error}") from None
    require(len(spec.layers) <= MAX_LAYERS, f"{where}: claims {len(spec.layers)} layers; {MAX_LAYERS} at most")
    require(math.isfinite(spec.norm_eps) and spec.norm_eps > 0, f"{where}: norm_eps {spec.norm_eps} is out of range")
    require(math.isfinite(spec.embed_scale), f"{where}: embed_scale {spec.embed_scale} is out of range")
    require(all(0 <= token < spec.vocab for token in spec.eos), f"{where}: an end token is outside the vocabulary")
    for index, layer in enumerate(spec.layers):
        numbers = (layer.scale, *layer.rope.frequencies)
        require(all(map(math.isfinite, numbers)), f"{where}: layer {index} has a number that is not finite")
        require(
            len(layer.rope.frequencies) == layer.rope.dim // 2,
            f"{where}: layer {index} has {len(layer.rope.frequencies)} frequencies for heads of {layer.rope.dim}",
        )
        require(max(layer.heads, layer.head_dim) <= 1 << 16, f"{where}: layer {index} has sizes out of range")
    return spec


def from_file(file: QuantisedFile) -> Model:
    """The model in a quantised file, its matrices mapped, not read. Raises ModelFileError."""
    spec = spec_from_json(file.description.spec, str(file.path))
    family = registry.named(spec.family)
    reader = _Reader(file, spec)
    embedding = reader.matrix(EMBEDDING, "embedding", spec.layers[0])
    layers = tuple(reader.layer(index, family) for index in range(len(spec.layers)))
    output = embedding if spec.tied else reader.matrix(OUTPUT, "output", spec.layers[0])
    norm = reader.vector(OUTPUT_NORM, spec.hidden)
    reader.refuse_unknown()
    return Model(spec, family, embedding, layers, norm, output)


def _release(file: QuantisedFile, name: str) -> None:
    file.release(name)
    if name + HEADER_SUFFIX in file.tensors:
        file.release(name + HEADER_SUFFIX)


class _Reader:
    """Keeps count of what was used, so that a tensor that would silently be ignored is an error."""

    def __init__(self, file: QuantisedFile, spec: ModelSpec) -> None:
        self._file = file
        self._spec = spec
        self._used: set[str] = set()

    def layer(self, index: int, family: Family) -> LayerWeights:
        attention = self._spec.layers[index]
        found: dict[str, Any] = {}
        for field in family.HF.layer:
            name = layer_name(index, field)
            if field in family.HF.optional and name not in self._file.tensors:
                continue
            if field in MATRIX_SHAPES:
                found[field] = self.matrix(name, field, attention)
            else:
                found[field] = self.vector(name, vector_width(field, self._spec, attention))
        return LayerWeights(**found)

    def matrix(self, name: str, field: str, attention: AttentionSpec) -> Weight:
        stored = self._file.matrix(name)
        n, k = MATRIX_SHAPES[field](self._spec, attention)
        rows, columns = stored.entry.rows, stored.entry.columns
        require((rows, columns) == (n, k), f"{self._file.path}: matrix {name!r} is {rows} x {columns}, not {n} x {k}")
        self._used.add(name)
        return Weight(
            name,
            stored.entry.format.upper(),
            n,
            k,
            stored.raw,
            release=partial(_release, self._file, name),
            header=stored.header,
            activation=stored.entry.activation,
        )

    def vector(self, name: str, size: int) -> Vector:
        self._used.add(name)
        return Vector(name, self._file.vector(name, size))

    def refuse_unknown(self) -> None:
        left = [
            name
            for name, info in self._file.tensors.items()
            if name not in self._used and (name in self._file.description.matrices or info.format == "F32")
        ]
        require(not left, f"{self._file.path}: {len(left)} tensors are not part of this model, the first {left[:1]}")
