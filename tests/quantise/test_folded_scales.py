"""Scales folded into a layer change no logit before anything is rounded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_models

from kvern.kernels.ops import Weight
from kvern.models.network import LayerWeights, Model
from kvern.models.open import open_network
from kvern.quantise import folding, smooth_attention, smoothing
from kvern.quantise.folding import Folds
from kvern.quantise.text_ops import Rows, TextOps

TOKENS = np.random.default_rng(0).integers(6, 250, (2, 24)).astype(np.int32)


class _Exact:
    def __init__(self) -> None:
        self.largest: dict[int, Rows] = {}

    def product(self, x: Rows, weight: Weight) -> Rows:
        return x @ weight.decode(0, weight.n).T

    def keys(self, layer: int, keys: Rows) -> None:
        self.largest[layer] = np.maximum(np.abs(keys).max(axis=0), self.largest.get(layer, 0))


def logits(model: Model) -> tuple[Rows, dict[int, Rows]]:
    watching = _Exact()
    ops = TextOps(TOKENS, watching)
    x = model.embed(ops)
    for unit in range(2 * len(model.layers)):
        x = model.unit(ops, unit, x)
    return model.head(ops, x), watching.largest


def with_folds(model: Model, folds: list[Folds]) -> Model:
    layers = []
    for layer, folded in zip(model.layers, folds, strict=True):
        made: dict[str, object] = {}
        for name in {*folded.rows, *folded.columns}:
            weight: Weight = getattr(layer, name)
            raw = folded.matrix(name, weight).view(np.uint8)
            made[name] = Weight(weight.name, "F32", weight.n, weight.k, raw)
        layers.append(replace(folded.applied(layer), **made))
    return replace(model, layers=tuple(layers))


def close(found: Rows, wanted: Rows) -> bool:
    return bool(np.abs(found - wanted).max() < 2e-4 * np.abs(wanted).max())


@pytest.fixture(scope="module", params=tiny_models.FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp(request.param)
    return open_network(tiny_models.write_gguf(folder / "m.gguf", request.param, "F32")).network


def test_smooth_attention_leaves_logits_and_evens_out_the_keys(model: Model) -> None:
    before, largest = logits(model)
    folds = [Folds() for _ in model.layers]
    for index, layer in enumerate(model.layers):
        smooth_attention.fold(folds[index], layer, largest[index], model.spec.layers[index])
    after, evened = logits(with_folds(model, folds))
    assert close(after, before)
    spread = [np.log(found).std() for found in (largest[0], evened[0])]
    assert spread[1] < spread[0]


def test_scales_at_every_site_leave_logits(model: Model) -> None:
    before, _ = logits(model)
    draw, folds = np.random.default_rng(1), [Folds() for _ in model.layers]
    for index, layer in enumerate(model.layers):
        for site in (*folding.sites_of(0), *folding.sites_of(1)):
            maker = getattr(layer, site.maker)
            size = maker.n if isinstance(maker, Weight) else maker.data.size
            scale = draw.lognormal(0, 0.5, size).astype(np.float32)
            folding.fold(folds[index], layer, site, scale, model.spec.layers[index])
    assert close(logits(with_folds(model, folds))[0], before)


def test_lambdas_are_shared_by_rotary_pairs() -> None:
    found = smooth_attention.scales(np.random.default_rng(2).lognormal(0, 1, (3, 16)).astype(np.float32))
    assert np.array_equal(found[:, :8], found[:, 8:])


def test_the_search_tames_an_outlying_channel_and_leaves_even_ones_alone() -> None:
    draw = np.random.default_rng(3)
    weights = draw.standard_normal((48, 64)).astype(np.float32)
    sample = draw.standard_normal((128, 64)).astype(np.float32)
    sample[:, 5] *= 60

    def to_int8(rows: Rows) -> Rows:
        step = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
        return (np.rint(rows / step) * step).astype(np.float32)

    rounding = smoothing.Rounding(to_int8, to_int8)
    scale = smoothing.search(sample, [weights], rounding)
    assert scale is not None and scale[5] > 2 * np.median(scale)
    plain = smoothing.error(sample, [weights], np.ones(64, np.float32), rounding)
    assert smoothing.error(sample, [weights], scale, rounding) < 0.3 * plain


def test_every_field_of_a_layer_is_known_to_the_sites() -> None:
    named = {name for unit in (0, 1) for site in folding.sites_of(unit) for name in site.consumers}
    matrices = {"query", "key", "value", "attention_output", "gate", "up", "down"}
    assert named == matrices <= set(LayerWeights.__dataclass_fields__)
