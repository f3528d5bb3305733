"""Models in formats of symmetric codes, inputs in the form each matrix asks for: the cpu against the reference."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from device_steps import Piece, batch_of, random_tokens

from kvern.assembly.memory import MemoryLimits, memory_needs
from kvern.assembly.model import DeviceOptions, LoadedModel, make_device, open_model
from kvern.formats import mixed_header
from kvern.formats.weights import w4a4_mixed
from kvern.kernels.ops import Weight
from kvern.models.network import LayerWeights, Model
from kvern.runtime.device import Device

pytest.importorskip("kvern._native", reason="the native library is not built")

# Of a unit's largest change: a single code that falls the other way is 1 / 127, 1 / 31, ... of its group's largest.
BOUNDS = {"w6": 6e-3, "bipolar2": 6e-3, "bipolar3": 6e-3, "bipolar4": 6e-3, "w4a4_mixed": 0.08}


def unit_errors(model: LoadedModel, weight_format: str, other: LoadedModel | None = None) -> list[float]:
    """Largest difference between the devices after each unit, over the largest change the unit makes. The cpu runs
    ``other`` where it is given."""
    options = {"weight_format": weight_format, "kv_format": "bf16", "pages": 8}
    reference = make_device(model, DeviceOptions(backend="reference", activations="as_cpu", **options))
    cpu = make_device(other or model, DeviceOptions(max_rows=96, **options))
    tokens = random_tokens(90, model.spec.vocab)
    hidden, found = np.zeros((90, model.spec.hidden), np.float32), []
    for unit in range(reference.units - 1):
        expected, got = (after(device, tokens, unit, hidden) for device in (reference, cpu))
        found.append(float(np.abs(got - expected).max() / np.abs(expected - hidden).max()))
        hidden = expected
    return found


def after(device: Device, tokens: list[int], unit: int, hidden: np.ndarray) -> np.ndarray:
    """Residual rows after one unit."""
    batch = batch_of(device, [Piece(tokens, [4, 1], first=unit, last=unit + 1, hidden=hidden)])
    device.step(batch)
    return batch.hidden


def changed(model: LoadedModel, matrices: Model) -> LoadedModel:
    return replace(model, opened=replace(model.opened, network=matrices))


def each_matrix(network: Model, change) -> Model:
    """The network with ``change(name, weight)`` in place of every matrix of its layers."""

    def layer(weights: LayerWeights) -> LayerWeights:
        found = {f.name: getattr(weights, f.name) for f in fields(LayerWeights)}
        return replace(weights, **{n: change(n, w) for n, w in found.items() if isinstance(w, Weight)})

    return replace(network, layers=tuple(layer(weights) for weights in network.layers))


@pytest.mark.parametrize("weight_format", BOUNDS)
def test_every_unit_at_load_time(weight_format: str, tmp_path: Path) -> None:
    model = open_model(tiny_models.write_gguf(tmp_path / "m.gguf", "llama", "Q8_0"))
    assert max(unit_errors(model, weight_format)) < BOUNDS[weight_format]


@pytest.mark.parametrize(
    ("weight_format", "activation", "bound"),
    [("w6", "int6 group 64", 0.02), ("bipolar2", "bit planes 4", 0.08), ("bipolar4", "bit planes", 0.3)],
)
def test_matrices_say_what_their_inputs_are_brought_to(
    weight_format: str, activation: str, bound: float, tmp_path: Path
) -> None:
    """FlexQ's rule: few bits before every matrix but the down projection, so both forms meet in one network. The
    error of taking the format's own form instead is above ``bound`` in every unit."""
    model = open_model(tiny_models.write_gguf(tmp_path / "m.gguf", "llama", "Q8_0"))
    plain = model.network.in_format(weight_format)
    few = each_matrix(plain, lambda name, w: w if name == "down" else replace(w, activation=activation))
    alike = unit_errors(changed(model, few), "file")
    apart = unit_errors(changed(model, few), "file", changed(model, plain))
    assert max(alike) < bound < min(apart)


def test_calibrated_headers_serve_matrices_of_one_input(tmp_path: Path) -> None:
    """Query and value share a header, the key has its own: rows coded for the one must not be used for the other."""
    model = open_model(tiny_models.write_gguf(tmp_path / "m.gguf", "llama", "F32"))
    draw = np.random.default_rng(0)
    shared = {
        w.k: mixed_header.calibrated_header(draw.random(w.k, dtype=np.float32), 1) for w in model.network.weights()
    }

    def permuted(name: str, w: Weight) -> Weight:
        header = shared[w.k]
        if name == "key":
            header = mixed_header.calibrated_header(draw.random(w.k, dtype=np.float32), 2)
        raw = w4a4_mixed.encode_rows(w.decode(0, w.n), header)
        return Weight(w.name, "W4A4_MIXED", w.n, w.k, raw, header=header)

    errors = unit_errors(changed(model, each_matrix(model.network, permuted)), "file")
    assert max(errors) < BOUNDS["w4a4_mixed"]


@pytest.mark.parametrize("weight_format", BOUNDS)
def test_memory_is_planned_by_shape(weight_format: str, tmp_path: Path) -> None:
    model = open_model(tiny_models.write_gguf(tmp_path / "m.gguf", "llama", "F32"))
    limits = MemoryLimits(max_context=256, max_running=2)
    needs = memory_needs(model, DeviceOptions(weight_format=weight_format), limits)
    elements = sum(w.n * w.k for w in model.network.weights())
    assert elements / 4 < needs.weights < elements
