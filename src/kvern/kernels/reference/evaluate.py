"""The ops of a forward pass evaluated at once with NumPy in float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kvern.core.errors import ConfigError
from kvern.formats import activations as activation_formats
from kvern.formats import weights as weight_formats
from kvern.kernels.ops import AttentionSpec, Vector, Weight
from kvern.kernels.reference.pages import Pages
from kvern.runtime.device import PAGE_TOKENS

Rows = NDArray[np.float32]

ACTIVATION_CHOICES = ("exact", "as_cpu")


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows ``[begin, end)`` of the values at hand belong to one slice, whose sequence has the pages ``table``."""

    begin: int
    end: int
    table: NDArray[np.int32]


class DecodedWeights:
    """Matrices as float32, decoded when first used and kept. ``activations`` says what their inputs are rounded to:
    "exact" (nothing: the oracle) or "as_cpu" (int8, as the cpu back end does for the weight's format)."""

    def __init__(self, activations: str) -> None:
        if activations not in ACTIVATION_CHOICES:
            raise ConfigError(f"activations {activations!r} is not one of {', '.join(ACTIVATION_CHOICES)}")
        self._activations = activations
        self._decoded: dict[int, tuple[Weight, Rows]] = {}

    def matrix(self, weight: Weight) -> Rows:
        """float32 [N, K]."""
        if id(weight) not in self._decoded:
            self._decoded[id(weight)] = weight, weight.decode(0, weight.n)
            weight.let_go()
        return self._decoded[id(weight)][1]

    def input_of(self, weight: Weight, x: Rows) -> Rows:
        """What the product with ``weight`` sees of the rows ``x``."""
        if self._activations == "exact":
            return x
        form = weight.activation or weight_formats.get(weight.format).activation
        return activation_formats.get(form).rounded(x, weight.header)

    def resident_bytes(self) -> int:
        return sum(decoded.nbytes for _, decoded in self._decoded.values())


@dataclass(frozen=True, slots=True)
class ReferenceOps:
    """Ops over the R rows of ``segments``; implements ``kvern.kernels.ops.Ops`` with arrays float32 [R, width].

    Matrix products are taken slice by slice, so that a row's bits do not depend on the slices beside its own.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    segments: tuple[Segment, ...]
    decoded: DecodedWeights
    pages: Pages

    def embed(self, table: Weight, scale: float) -> Rows:
        return self.decoded.matrix(table)[self.tokens] * np.float32(scale)

    def norm(self, x: Rows, weight: Vector, eps: float) -> Rows:
        mean: Rows = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
        normed: Rows = x / np.sqrt(mean + np.float32(eps)) * weight.data
        return normed

    def linear(self, x: Rows, weight: Weight, bias: Vector | None = None) -> Rows:
        matrix, seen = self.decoded.matrix(weight), self.decoded.input_of(weight, x)
        out = np.empty((x.shape[0], weight.n), np.float32)
        for segment in self.segments:
            out[segment.begin : segment.end] = seen[segment.begin : segment.end] @ matrix.T
        return out if bias is None else out + bias.data

    def head_norm(self, x: Rows, weight: Vector, heads: int, eps: float) -> Rows:
        return self.norm(x.reshape(x.shape[0], heads, -1), weight, eps).reshape(x.shape)

    def attend(self, q: Rows, k: Rows, v: Rows, layer: int, spec: AttentionSpec) -> Rows:
        rows = q.shape[0]
        angles = spec.rope.angles(self.positions)
        queries = rotate(q.reshape(rows, spec.heads, spec.head_dim), angles)
        keys = rotate(k.reshape(rows, spec.kv_heads, spec.head_dim), angles)
        values = v.reshape(rows, spec.kv_heads, spec.head_dim)
        for s in self.segments:
            self.pages.append(layer, s.table, self.positions[s.begin : s.end], keys[s.begin : s.end],
                              values[s.begin : s.end])  # fmt: skip
        out = np.empty_like(queries)
        for s in self.segments:
            for rows_alike in self._rows_alike(s):
                positions = self.positions[rows_alike]
                stored = self.pages.read(layer, s.table, int(positions.max()) + 1)
                out[rows_alike] = attention(queries[rows_alike], *stored, positions, spec)
        return out.reshape(rows, spec.heads * spec.head_dim)

    def _rows_alike(self, segment: Segment) -> list[slice]:
        """Runs of a segment's rows that see the same numbers in every page."""
        if not self.pages.by_row_page:
            return [slice(segment.begin, segment.end)]
        pages = self.positions[segment.begin : segment.end] // PAGE_TOKENS
        cuts = [segment.begin, *(segment.begin + 1 + np.flatnonzero(np.diff(pages))).tolist(), segment.end]
        return [slice(begin, end) for begin, end in pairwise(cuts)]

    def gated(self, gate: Rows, up: Rows, activation: str) -> Rows:
        return ACTIVATION_FUNCTIONS[activation](gate) * up

    def add(self, x: Rows, y: Rows) -> Rows:
        return x + y


def rotate(x: NDArray[np.float32], angles: NDArray[np.float64]) -> NDArray[np.float32]:
    """Turn element i of every head against element i + dim / 2: x [R, heads, dim], angles [R, dim / 2]."""
    cos, sin = np.cos(angles).astype(np.float32)[:, None], np.sin(angles).astype(np.float32)[:, None]
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(
    q: NDArray[np.float32],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    positions: NDArray[np.int32],
    spec: AttentionSpec,
) -> NDArray[np.float32]:
    """q [R, heads, dim] over keys and values [tokens, kv_heads, dim] -> [R, heads, dim]; a row at position p sees
    tokens up to p, and no more than its window."""
    shared = spec.heads // spec.kv_heads
    distance = positions[:, None] - np.arange(keys.shape[0])[None, :]
    seen = distance >= 0 if spec.window is None else (distance >= 0) & (distance < spec.window)
    out = np.empty_like(q)
    for head in range(spec.heads):
        scores = q[:, head] @ keys[:, head // shared].T * np.float32(spec.scale)
        scores = np.where(seen, scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[:, head] = weights @ values[:, head // shared] / weights.sum(axis=-1, keepdims=True)
    return out


def silu(x: Rows) -> Rows:
    with np.errstate(over="ignore"):
        out: Rows = x / (1 + np.exp(-x))
    return out


def gelu_tanh(x: Rows) -> Rows:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    out: Rows = np.float32(0.5) * x * (1 + np.tanh(inner))
    return out


ACTIVATION_FUNCTIONS = {"silu": silu, "gelu_tanh": gelu_tanh}
