"""Quantise a model unit by unit: each unit sees the inputs that the quantised units before it make.

Within a unit: its inputs and keys are watched once with exact weights; scales are folded where that lessens the
rounding error; then every matrix is rounded when its input comes, and the pass goes on with the rounded matrix. What
is kept in memory is the residual rows of the calibration texts, one unit's values, and one matrix at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from kvern.formats import activations
from kvern.formats import weights as weight_formats
from kvern.formats.weight_format import NO_HEADER
from kvern.kernels.ops import Vector, Weight
from kvern.models.canonical import EMBEDDING, OUTPUT, OUTPUT_NORM, layer_name
from kvern.models.network import LayerWeights, Model
from kvern.quantise import folding, smooth_attention, smoothing
from kvern.quantise.folding import Folds
from kvern.quantise.moments import second_moments
from kvern.quantise.recipe import Choice, Recipe
from kvern.quantise.rounding import Rounded, round_matrix
from kvern.quantise.text_ops import Rows, TextOps

SAMPLE_ROWS = 256
Tick = Callable[[int, int], None]  # matrices done, of


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedMatrix:
    """One result. ``error``: squared error of its outputs over their square, on the calibration texts (embedding
    rows: of the weights themselves); ``loss``: ``tr(E H E^T)``, the squared error of the outputs of one input row."""

    name: str
    weight: Weight
    error: float
    loss: float = 0.0


Result = QuantisedMatrix | Vector


def quantise(model: Model, recipe: Recipe, tokens: NDArray[np.int32], tick: Tick) -> Iterator[Result]:
    """Every matrix and vector of ``model`` under ``recipe``, each once, under canonical names.

    ``tokens`` int32 [texts, length] are the calibration texts. Raises ModelFileError, ConfigError.
    """
    total = 7 * len(model.layers) + 1 + (model.output is not model.embedding)
    done = 0
    texts = TextOps(tokens, _Exact())
    x = texts.embed(model.embedding, model.spec.embed_scale)
    for index in range(len(model.layers)):
        layer = _Layer(model, index, recipe)
        for unit in (2 * index, 2 * index + 1):
            x, found = layer.run(unit, x, tokens)
            for matrix in found:
                done += 1
                tick(done, total)
                yield matrix
        yield from layer.vectors()
    yield Vector(OUTPUT_NORM, model.output_norm.data)
    for matrix in _ends(model, recipe, x, tokens):
        done += 1
        tick(done, total)
        yield matrix


def _ends(model: Model, recipe: Recipe, x: Rows, tokens: NDArray[np.int32]) -> Iterator[QuantisedMatrix]:
    """The embedding table and the output matrix (one of both kinds when tied)."""
    head = _Head()
    model.head(TextOps(tokens, head), x)
    assert head.moments is not None
    tied = model.output is model.embedding
    if not tied:
        yield _whole(OUTPUT, model.output, recipe.of(OUTPUT), head.moments)
    # An input row is used as it is, so for the table all columns count alike; a tied one serves both ends.
    k = model.embedding.k
    alike = np.eye(k)
    moments = head.moments / np.trace(head.moments) * k + recipe.embedding_share * alike if tied else alike
    yield _whole(EMBEDDING, model.embedding, recipe.of(EMBEDDING), moments)


def _whole(name: str, weight: Weight, choice: Choice, moments: NDArray[np.float64]) -> QuantisedMatrix:
    values = weight.decode(0, weight.n)
    weight.let_go()
    return _result(name, values, choice, round_matrix(values, choice, moments), moments)


def _result(
    name: str, values: Rows, choice: Choice, rounded: Rounded, moments: NDArray[np.float64]
) -> QuantisedMatrix:
    n, k = values.shape
    form = weight_formats.get(choice.format)
    weight = Weight(name, form.name, n, k, rounded.rows, header=rounded.header, activation=choice.activation)
    loss = squared(values - rounded.values, moments)
    return QuantisedMatrix(name, weight, loss / max(squared(values, moments), 1e-30), loss)


def squared(rows: Rows, moments: NDArray[np.float64]) -> float:
    """``tr(W H W^T)`` for rows W [N, K] and moments H [K, K]: the mean square of the outputs they make, summed."""
    return float(np.vdot(rows @ moments.astype(np.float32), rows))


class _Exact:
    """Multiplies with the file's matrices."""

    def product(self, x: Rows, weight: Weight) -> Rows:
        return x @ weight.decode(0, weight.n).T

    def keys(self, layer: int, keys: Rows) -> None:
        return


class _Head:
    """Takes the moments of the output's input; the logits themselves are not wanted."""

    moments: NDArray[np.float64] | None = None

    def product(self, x: Rows, weight: Weight) -> Rows:
        self.moments = second_moments(x)
        return np.empty((x.shape[0], 0), np.float32)

    def keys(self, layer: int, keys: Rows) -> None:
        return


class _Watching(_Exact):
    """Keeps a sample of each matrix's inputs, and the largest keys."""

    def __init__(self, names: dict[int, str]) -> None:
        self._names = names
        self.samples: dict[str, Rows] = {}
        self.largest: NDArray[np.float32] | None = None

    def product(self, x: Rows, weight: Weight) -> Rows:
        step = max(1, x.shape[0] // SAMPLE_ROWS)
        self.samples[self._names[id(weight)]] = x[::step].copy()
        return super().product(x, weight)

    def keys(self, layer: int, keys: Rows) -> None:
        found = np.abs(keys).max(axis=0)
        self.largest = found if self.largest is None else np.maximum(self.largest, found)


class _Layer:
    """One layer while it is quantised."""

    def __init__(self, model: Model, index: int, recipe: Recipe) -> None:
        self._model, self._index, self._recipe = model, index, recipe
        self._source = model.layers[index]
        self._names = {
            id(getattr(self._source, item.name)): item.name
            for item in fields(LayerWeights)
            if isinstance(getattr(self._source, item.name), Weight)
        }
        self._folds = Folds()

    def run(self, unit: int, x: Rows, tokens: NDArray[np.int32]) -> tuple[Rows, list[QuantisedMatrix]]:
        """Quantise one unit; its output rows, and its matrices."""
        self._fold(unit, x, tokens)
        rounding = _Rounding(self._names, self._folds, self._choice, self._index)
        return self._with(self._folds.applied(self._source)).unit(TextOps(tokens, rounding), unit, x), rounding.done

    def vectors(self) -> Iterator[Vector]:
        """Norms and biases as they are after folding."""
        layer = self._folds.applied(self._source)
        for item in fields(LayerWeights):
            found = getattr(layer, item.name)
            if isinstance(found, Vector):
                yield Vector(layer_name(self._index, item.name), found.data)

    def _choice(self, name: str) -> Choice:
        return self._recipe.of(layer_name(self._index, name))

    def _with(self, layer: LayerWeights) -> Model:
        layers = (*self._model.layers[: self._index], layer, *self._model.layers[self._index + 1 :])
        return replace(self._model, layers=layers)

    def _fold(self, unit: int, x: Rows, tokens: NDArray[np.int32]) -> None:
        if not (self._recipe.smooth_inputs or (self._recipe.smooth_attention and unit % 2 == 0)):
            return
        watching = _Watching(self._names)
        self._model.unit(TextOps(tokens, watching), unit, x)
        if self._recipe.smooth_attention and watching.largest is not None:
            attention = self._model.spec.layers[self._index]
            smooth_attention.fold(self._folds, self._source, watching.largest, attention)
        if self._recipe.smooth_inputs:
            for site in folding.sites_of(unit):
                self._smooth(site, watching.samples[site.consumers[0]])

    def _smooth(self, site: folding.Site, sample: Rows) -> None:
        attention = self._model.spec.layers[self._index]
        matrices = [self._folds.matrix(name, getattr(self._source, name)) for name in site.consumers]
        rounding = _seen_by(self._choice(site.consumers[0]))
        if site.maker == "value":
            scale = smoothing.search(
                sample,
                matrices,
                rounding,
                spread=lambda found: folding.shared_to_heads(found, attention),
                gather=lambda found: folding.heads_to_shared(found, attention),
            )
        else:
            scale = smoothing.search(sample, matrices, rounding)
        if scale is not None:
            folding.fold(self._folds, self._source, site, scale, attention)


def _seen_by(choice: Choice) -> smoothing.Rounding:
    """What a plain encoding in the chosen formats makes of inputs and weights."""
    form = weight_formats.get(choice.format)
    inputs = activations.get(choice.activation or form.activation)

    def weights(values: Rows) -> Rows:
        header, rows = form.encode_matrix(values)
        return form.decode(rows, values.shape[0], values.shape[1], header)

    return smoothing.Rounding(lambda x: inputs.rounded(x, NO_HEADER), weights)


class _Rounding:
    """Rounds each matrix when its input comes, and multiplies with what came of it."""

    def __init__(self, names: dict[int, str], folds: Folds, choice: Callable[[str], Choice], layer: int) -> None:
        self._names, self._folds, self._choice, self._layer = names, folds, choice, layer
        self._input: Rows | None = None
        self._moments = np.empty((0, 0))
        self._largest = np.empty(0, np.float32)
        self.done: list[QuantisedMatrix] = []

    def product(self, x: Rows, weight: Weight) -> Rows:
        name = self._names[id(weight)]
        choice = self._choice(name)
        if self._input is not x:  # query, key and value share one, gate and up too
            self._input, self._moments, self._largest = x, second_moments(x), np.abs(x).max(axis=0)
        values = self._folds.matrix(name, weight)
        weight.let_go()
        rounded = round_matrix(values, choice, self._moments, self._largest)
        result = _result(layer_name(self._layer, name), values, choice, rounded, self._moments)
        self.done.append(result)
        form = choice.activation or weight_formats.get(choice.format).activation
        return activations.get(form).rounded(x, rounded.header) @ rounded.values.T

    def keys(self, layer: int, keys: Rows) -> None:
        return
