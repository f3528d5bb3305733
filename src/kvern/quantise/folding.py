"""Scales moved between a layer's matrices and the norms or matrices before them; what the layer computes stays.

A site is an input shared by some matrices, and what makes that input: a norm, whose weight can be divided by a scale
for each channel, or another matrix, whose output rows can. The consumers' columns are multiplied by the same scale.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvern.kernels.ops import AttentionSpec, Vector, Weight
from kvern.models.network import LayerWeights

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Site:
    """``maker`` and ``consumers`` are fields of LayerWeights; ``maker`` is a norm or a matrix."""

    maker: str
    consumers: tuple[str, ...]


ATTENTION_SITES = (Site("attention_norm", ("query", "key", "value")), Site("value", ("attention_output",)))
FEED_FORWARD_SITES = (Site("feed_forward_norm", ("gate", "up")), Site("up", ("down",)))


def sites_of(unit: int) -> tuple[Site, ...]:
    return ATTENTION_SITES if unit % 2 == 0 else FEED_FORWARD_SITES


@dataclass(slots=True)
class Folds:
    """What was folded into one layer so far: float32 scales of rows and columns by field of LayerWeights.

    ``vectors`` are norms and biases that replace the layer's own.
    """

    rows: dict[str, Floats] = field(default_factory=dict)
    columns: dict[str, Floats] = field(default_factory=dict)
    vectors: dict[str, Vector] = field(default_factory=dict)

    def matrix(self, name: str, weight: Weight) -> Floats:
        """The matrix ``weight`` in the field ``name``, decoded, with its scales applied: float32 [N, K]."""
        values = weight.decode(0, weight.n)
        if name in self.rows:
            values = values * self.rows[name][:, None]
        if name in self.columns:
            values = values * self.columns[name][None, :]
        return values

    def scale_rows(self, layer: LayerWeights, name: str, scale: Floats) -> None:
        """Multiply output rows of matrix ``name``, and its bias, by ``scale`` [N]."""
        self.rows[name] = self.rows.get(name, np.ones_like(scale)) * scale
        self.scale_vector(layer, f"{name}_bias", scale)

    def scale_columns(self, name: str, scale: Floats) -> None:
        self.columns[name] = self.columns.get(name, np.ones_like(scale)) * scale

    def scale_vector(self, layer: LayerWeights, name: str, scale: Floats) -> None:
        """Multiply a norm or a bias by ``scale``; nothing happens where the layer has none."""
        vector = self.vectors.get(name, getattr(layer, name))
        if vector is not None:
            self.vectors[name] = Vector(vector.name, (vector.data * scale).astype(np.float32))

    def applied(self, layer: LayerWeights) -> LayerWeights:
        """The layer with the replaced vectors; its matrices are as they were (see ``matrix``)."""
        changed: dict[str, Any] = dict(self.vectors)
        return replace(layer, **changed)


def fold(folds: Folds, layer: LayerWeights, site: Site, scale: Floats, attention: AttentionSpec) -> None:
    """Divide the input of ``site`` by ``scale`` [channels of the maker] and multiply its consumers' columns by it.

    Attention repeats the channels of a KV head for the query heads that share it.
    """
    inverse = (1 / scale).astype(np.float32)
    columns = scale
    if isinstance(getattr(layer, site.maker), Vector):
        folds.scale_vector(layer, site.maker, inverse)
    else:
        folds.scale_rows(layer, site.maker, inverse)
        if site.maker == "value":
            columns = shared_to_heads(scale, attention)
    for name in site.consumers:
        folds.scale_columns(name, columns)


def shared_to_heads(per_channel: Floats, attention: AttentionSpec) -> Floats:
    """[kv_heads * head_dim] -> [heads * head_dim], each KV head's channels repeated for its query heads."""
    heads = per_channel.reshape(attention.kv_heads, attention.head_dim)
    return np.repeat(heads, attention.heads // attention.kv_heads, axis=0).reshape(-1)


def heads_to_shared(per_channel: Floats, attention: AttentionSpec) -> Floats:
    """[heads * head_dim] -> [kv_heads * head_dim]: the largest of the query heads that share a KV head."""
    shared = attention.heads // attention.kv_heads
    largest: Floats = per_channel.reshape(attention.kv_heads, shared, attention.head_dim).max(axis=1).reshape(-1)
    return largest
