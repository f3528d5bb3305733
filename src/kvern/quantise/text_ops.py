"""A forward pass over several texts at once without pages, one unit at a time: what calibration runs on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kvern.kernels.ops import AttentionSpec, Vector, Weight
from kvern.kernels.reference.evaluate import ACTIVATION_FUNCTIONS, attention, rotate

Rows = NDArray[np.float32]


class Observer(Protocol):
    """Sees every product with a matrix, and every layer's rotated keys, as they come."""

    def product(self, x: Rows, weight: Weight) -> Rows:
        """The output ``x @ W.T`` (without bias) for inputs ``x`` [R, K]: float32 [R, N]."""

    def keys(self, layer: int, keys: Rows) -> None:
        """Rotated keys of one text, float32 [tokens, kv_heads, head_dim]."""


@dataclass(frozen=True, slots=True)
class TextOps:
    """Ops over texts of equal length: ``tokens`` int32 [texts, length]; values are float32 [texts * length, width].

    Implements ``kvern.kernels.ops.Ops``. Keys and values live only inside ``attend``, so that memory does not grow
    with the layers.
    """

    tokens: NDArray[np.int32]
    observer: Observer

    def embed(self, table: Weight, scale: float) -> Rows:
        ids = self.tokens.reshape(-1)
        out = np.empty((ids.size, table.k), np.float32)
        for i, token in enumerate(ids.tolist()):
            out[i] = table.decode(token, token + 1)[0]
        return out * np.float32(scale)

    def norm(self, x: Rows, weight: Vector, eps: float) -> Rows:
        mean: Rows = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
        normed: Rows = x / np.sqrt(mean + np.float32(eps)) * weight.data
        return normed

    def linear(self, x: Rows, weight: Weight, bias: Vector | None = None) -> Rows:
        out = self.observer.product(x, weight)
        return out if bias is None else out + bias.data

    def head_norm(self, x: Rows, weight: Vector, heads: int, eps: float) -> Rows:
        return self.norm(x.reshape(x.shape[0], heads, -1), weight, eps).reshape(x.shape)

    def attend(self, q: Rows, k: Rows, v: Rows, layer: int, spec: AttentionSpec) -> Rows:
        length = self.tokens.shape[1]
        positions = np.arange(length, dtype=np.int32)
        angles = spec.rope.angles(positions)
        out = np.empty((q.shape[0], spec.heads * spec.head_dim), np.float32)
        for rows in self._texts():
            queries = rotate(q[rows].reshape(length, spec.heads, spec.head_dim), angles)
            keys = rotate(k[rows].reshape(length, spec.kv_heads, spec.head_dim), angles)
            values = v[rows].reshape(length, spec.kv_heads, spec.head_dim)
            self.observer.keys(layer, keys)
            out[rows] = attention(queries, keys, values, positions, spec).reshape(length, -1)
        return out

    def gated(self, gate: Rows, up: Rows, activation: str) -> Rows:
        return ACTIVATION_FUNCTIONS[activation](gate) * up

    def add(self, x: Rows, y: Rows) -> Rows:
        return x + y

    def _texts(self) -> Iterator[slice]:
        count, length = self.tokens.shape
        for text in range(count):
            yield slice(text * length, (text + 1) * length)
