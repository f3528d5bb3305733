"""What a model says and a back end does: the operations a family's forward pass is written in.

A family in ``kvern.models`` writes ``embed``, ``unit`` and ``head`` once over these operations. The ``reference``
back end evaluates them with NumPy; the ``cpu`` back end calls them once at load and records a program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvern.formats import weights
from kvern.formats.weight_format import no_header

T = TypeVar("T")

ACTIVATIONS = ("silu", "gelu_tanh")


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions: element ``i`` is paired with ``i + dim / 2`` and turned by ``position * frequencies[i]``.

    ``frequencies`` are radians per token, float32 values (dim / 2 of them), with every scaling rule of the file
    already applied; a back end needs nothing else. ``theta`` is kept for people to read.
    """

    theta: float
    dim: int
    frequencies: tuple[float, ...]

    def angles(self, positions: NDArray[np.int32]) -> NDArray[np.float64]:
        """[R] positions -> [R, dim / 2] radians, rounded to float32 first as the model was trained with."""
        frequencies = np.asarray(self.frequencies, np.float32)
        return (positions.astype(np.float32)[:, None] * frequencies[None, :]).astype(np.float64)


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """One layer's attention. Query head ``h`` reads KV head ``h // (heads // kv_heads)``.

    ``scale`` multiplies the scores. ``window``: a row at position p sees positions ``p - window + 1 .. p``
    (None: ``0 .. p``).
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    rope: RopeSpec


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A matrix of N outputs by K inputs as it stands in a file, not yet decoded.

    ``raw`` is uint8 [N, bytes per row], usually a view of a mapped file, rows in the file's order; row ``i`` of the
    matrix is ``raw[rows[i]]`` (``rows`` None: the same order). ``format`` names a file of ``kvern.formats.weights``.
    ``release`` tells the reader that this tensor will not be read again (None: nothing to do). With ``converted``
    the matrix is that one brought to ``format`` row by row as it is read, and ``raw`` is empty: back ends read
    through ``rows_raw`` or ``decode``, a few rows at a time. ``header`` (uint8, mostly empty) is what the format says
    of the matrix as a whole; ``activation`` the form its inputs are brought to (None: the format's own).
    """

    name: str
    format: str
    n: int
    k: int
    raw: NDArray[np.uint8]
    rows: NDArray[np.int32] | None = None
    release: Callable[[], None] | None = None
    converted: Weight | None = None
    header: NDArray[np.uint8] = field(default_factory=no_header)
    activation: str | None = None

    def rows_raw(self, begin: int, end: int) -> NDArray[np.uint8]:
        """Rows ``[begin, end)`` of the matrix in ``format``: uint8 [end - begin, bytes per row]."""
        if self.converted is not None:
            return weights.get(self.format).encode(self.converted.decode(begin, end), self.header)
        return self.raw[begin:end] if self.rows is None else self.raw[self.rows[begin:end]]

    def decode(self, begin: int, end: int) -> NDArray[np.float32]:
        """Rows ``[begin, end)`` as numbers: float32 [end - begin, K]."""
        return weights.get(self.format).decode(self.rows_raw(begin, end), end - begin, self.k, self.header)

    def let_go(self) -> None:
        """All rows have been read and copied: the pages of the file they came from may leave memory."""
        if self.release is not None:
            self.release()

    def as_format(self, name: str) -> Weight:
        """The same matrix in another weight format (itself where it already is in that one)."""
        if name.upper() == self.format.upper():
            return self
        form, empty = weights.get(name), np.empty((0, 0), np.uint8)
        header = form.plain_header(self.k)
        return Weight(self.name, form.name, self.n, self.k, empty, None, self.release, self, header)


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """A norm weight or a bias: float32 [n], owned, in the order of the matrix rows it belongs to."""

    name: str
    data: NDArray[np.float32]


class Ops(Protocol[T]):
    """``T`` stands for R rows of some width: an array in the reference back end, a name in a recorded program."""

    def embed(self, table: Weight, scale: float) -> T:
        """Rows of ``table`` at the batch's tokens, times ``scale`` (float32): R x table.k."""

    def norm(self, x: T, weight: Vector, eps: float) -> T:
        """RMSNorm over the row: ``x / sqrt(mean(x ** 2) + eps) * weight``."""

    def linear(self, x: T, weight: Weight, bias: Vector | None = None) -> T:
        """``x @ weight.T + bias``: R x weight.n."""

    def head_norm(self, x: T, weight: Vector, heads: int, eps: float) -> T:
        """RMSNorm of each of ``heads`` equal parts of the row; ``weight`` has the width of one part."""

    def attend(self, q: T, k: T, v: T, layer: int, spec: AttentionSpec) -> T:
        """Rotate q and k, append k and v to the pages of ``layer``, attend: R x (heads * head_dim)."""

    def gated(self, gate: T, up: T, activation: str) -> T:
        """``activation(gate) * up``; ``activation`` is one of ``ACTIVATIONS``."""

    def add(self, x: T, y: T) -> T:
        """``x + y``."""


class Network(Protocol):
    """A model as a back end sees it: shapes, and a forward pass to evaluate or record.

    ``embed`` gives the residual rows before unit 0, ``unit`` takes them over one sublayer (``2 * layer`` attention,
    ``2 * layer + 1`` feed-forward, each with its residual add), ``head`` turns them into logits.
    """

    @property
    def attention(self) -> tuple[AttentionSpec, ...]:
        """One entry per layer."""

    @property
    def hidden_size(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def embed(self, ops: Ops[T]) -> T: ...

    def unit(self, ops: Ops[T], unit: int, x: T) -> T: ...

    def head(self, ops: Ops[T], x: T) -> T: ...

    def weights(self) -> tuple[Weight, ...]:
        """Every distinct matrix, in the order of use; a tied output is the embedding and appears once."""
