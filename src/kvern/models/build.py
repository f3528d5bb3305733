"""From an open file of tensors and a family to a `Model`: names, shapes, row orders and offsets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvern.core.errors import ModelFileError
from kvern.formats import weights as weight_formats
from kvern.kernels.ops import AttentionSpec, Vector, Weight
from kvern.models.network import Forward, LayerWeights, Model
from kvern.models.spec import ModelSpec, require
from kvern.models.tensors import Layout
from kvern.weights.mapped_file import TensorFile


def neighbours_to_halves(heads: int, head_dim: int) -> NDArray[np.int32]:
    """Row order that brings rotary pairs (2 i, 2 i + 1) of every head to (i, i + head_dim / 2): int32 [rows]."""
    within = np.arange(head_dim).reshape(head_dim // 2, 2).T.reshape(-1)
    return (np.arange(heads)[:, None] * head_dim + within[None, :]).reshape(-1).astype(np.int32)


def find_root(file: TensorFile, layout: Layout) -> str:
    """Which of the layout's roots this file uses: the one under which its embedding table is found."""
    table = layout.whole["embedding"]
    for root in layout.roots:
        if root + table.removeprefix(layout.roots[0]) in file.tensors:
            return root
    raise ModelFileError(f"{file.path}: has no embedding table (looked for {table!r})")


def build(spec: ModelSpec, forward: Forward, layout: Layout, file: TensorFile) -> Model:
    """Every tensor found, its shape checked, none of the matrices decoded. Raises ModelFileError."""
    loader = _Loader(spec, layout, file)
    embedding = loader.matrix("embedding", loader.name("embedding"))
    layers = tuple(loader.layer(index) for index in range(len(spec.layers)))
    output = embedding if spec.tied else loader.matrix("output", loader.name("output"))
    output_norm = loader.vector("output_norm", loader.name("output_norm"), spec.layers[0])
    loader.refuse_unknown()
    return Model(spec, forward, embedding, layers, output_norm, output)


class _Loader:
    """Keeps count of what was used, so that a tensor that would silently be ignored is an error."""

    def __init__(self, spec: ModelSpec, layout: Layout, file: TensorFile) -> None:
        self.spec = spec
        self.layout = layout
        self.file = file
        self.root = find_root(file, layout)
        self.used: set[str] = set()

    def name(self, field: str) -> str:
        return self._rooted(self.layout.whole[field])

    def _rooted(self, name: str) -> str:
        first = self.layout.roots[0]
        return self.root + name.removeprefix(first) if name.startswith(first) else name

    def layer(self, index: int) -> LayerWeights:
        attention = self.spec.layers[index]
        found: dict[str, Any] = {}
        for field in fields(LayerWeights):
            pattern = self.layout.layer.get(field.name)
            if pattern is None:
                continue
            name = self._rooted(pattern.format(layer=index))
            if field.name in self.layout.optional and name not in self.file.tensors:
                continue
            if field.name in MATRIX_SHAPES:
                found[field.name] = self.matrix(field.name, name, attention)
            else:
                found[field.name] = self.vector(field.name, name, attention)
        return LayerWeights(**found)

    def matrix(self, field: str, name: str, attention: AttentionSpec | None = None) -> Weight:
        info = self.file.info(name)
        expected = MATRIX_SHAPES[field](self.spec, attention or self.spec.layers[0])
        self._check_shape(name, info.shape, expected)
        n, k = expected
        weight_format = weight_formats.get(info.format)
        raw = self.file.data(name).reshape(n, weight_format.row_bytes(k))
        self.used.add(name)
        release = partial(self.file.release, name)
        return Weight(name, weight_format.name, n, k, raw, self._order(field, attention), release)

    def vector(self, field: str, name: str, attention: AttentionSpec) -> Vector:
        info = self.file.info(name)
        width = vector_width(field, self.spec, attention)
        self._check_shape(name, info.shape, (width,))
        values = weight_formats.get(info.format).decode(self.file.data(name), 1, width)[0]
        order = self._order(field, attention)
        if order is not None:
            values = values[order]
        offset = np.float32(self.layout.norm_offset) if field.endswith("norm") else np.float32(0)
        self.used.add(name)
        return Vector(name, np.array(values + offset, np.float32))

    def _order(self, field: str, attention: AttentionSpec | None) -> NDArray[np.int32] | None:
        if field not in self.layout.interleaved or attention is None:
            return None
        heads = attention.heads if field.startswith("query") else attention.kv_heads
        return neighbours_to_halves(heads, attention.head_dim)

    def _check_shape(self, name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
        require(shape == expected, f"{self.file.path}: tensor {name!r} has shape {shape}, not {expected}")

    def refuse_unknown(self) -> None:
        """A tensor of the text model that nothing here reads would change what the model says: refuse the file."""
        unread = {self.name("output")} if self.spec.tied else set()
        left = [
            name
            for name in self.file.tensors
            if name.startswith(self.root)
            and name not in self.used | unread
            and not name.endswith(self.layout.ignored)
            and not name.startswith(self.layout.other_parts)
        ]
        require(not left, f"{self.file.path}: {len(left)} tensors are not part of this family, the first {left[:1]}")


_Shape = Callable[[ModelSpec, AttentionSpec], tuple[int, int]]
MATRIX_SHAPES: dict[str, _Shape] = {
    "embedding": lambda s, a: (s.vocab, s.hidden),
    "output": lambda s, a: (s.vocab, s.hidden),
    "query": lambda s, a: (a.heads * a.head_dim, s.hidden),
    "key": lambda s, a: (a.kv_heads * a.head_dim, s.hidden),
    "value": lambda s, a: (a.kv_heads * a.head_dim, s.hidden),
    "attention_output": lambda s, a: (s.hidden, a.heads * a.head_dim),
    "gate": lambda s, a: (s.intermediate, s.hidden),
    "up": lambda s, a: (s.intermediate, s.hidden),
    "down": lambda s, a: (s.hidden, s.intermediate),
}


def vector_width(field: str, spec: ModelSpec, attention: AttentionSpec) -> int:
    """Elements of a norm or bias, by its field in LayerWeights."""
    if field in ("query_norm", "key_norm"):
        return attention.head_dim
    if field.endswith("_norm"):
        return spec.hidden
    return MATRIX_SHAPES[field.removesuffix("_bias")](spec, attention)[0]
