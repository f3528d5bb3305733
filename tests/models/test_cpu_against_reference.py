"""The native device against the reference, family by family and format by format, unit by unit.

With ``activations="as_cpu"`` the reference rounds inputs as the cpu does, so that one unit differs by float rounding
and by single codes that fall the other way: at most ``BOUND`` of what the unit adds. Against exact activations the
error is that of the formats, and is bounded over whole logits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
from device_steps import Piece, batch_of, logits_of, random_tokens

from kvern.assembly.model import DeviceOptions, LoadedModel, make_device, open_model
from kvern.runtime.device import Device
from kvern.weights.hub import cached

pytest.importorskip("kvern._native", reason="the native library is not built")

BOUND = 6e-3  # of a unit's largest change: one code of an int8 group is 1/127 of the group's largest value
# Root mean square error of logits over their own, against exact activations and float weights as decoded. The float
# formats have what single KV values cost that round to the other bf16; on AMX, bf16 inputs are rounded too.
FORMAT_BOUNDS = {"F32": 5e-4, "F16": 5e-4, "BF16": 1e-2} | dict.fromkeys(
    ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"), 0.03
)


def pair(model: LoadedModel, weight_format: str, kv_format: str) -> tuple[Device, Device]:
    chosen = {"weight_format": weight_format, "kv_format": kv_format, "pages": 8}
    reference = DeviceOptions(backend="reference", activations="as_cpu", **chosen)
    return make_device(model, reference), make_device(model, DeviceOptions(max_rows=160, **chosen))


def change_over(device: Device, tokens: list[int], unit: int, hidden: np.ndarray) -> np.ndarray:
    """Residual rows after one unit, float32 [R, H]."""
    piece = Piece(tokens, [4, 1, 2], first=unit, last=unit + 1, hidden=hidden)
    batch = batch_of(device, [piece])
    device.step(batch)
    return batch.hidden


def worst_unit(model: LoadedModel, weight_format: str, kv_format: str, tokens: list[int]) -> tuple[float, int]:
    """Largest difference between the two devices after one unit, of the largest change the unit makes; and where."""
    reference, cpu = pair(model, weight_format, kv_format)
    hidden = np.zeros((len(tokens), model.spec.hidden), np.float32)
    found = []
    for unit in range(reference.units - 1):
        expected, got = (change_over(device, tokens, unit, hidden) for device in (reference, cpu))
        found.append((float(np.abs(got - expected).max() / np.abs(expected - hidden).max()), unit))
        hidden = expected
    return max(found)


@pytest.mark.parametrize("kv_format", ["bf16", "kv8"])
@pytest.mark.parametrize("weight_format", ["file", "w8a8", "bf16", "f32"])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_unit_of_every_family(family: str, weight_format: str, kv_format: str, tmp_path: Path) -> None:
    model = open_model(tiny_models.write_gguf(tmp_path / "m.gguf", family, "Q4_1"))
    error, unit = worst_unit(model, weight_format, kv_format, random_tokens(130, model.spec.vocab))
    assert error < BOUND, f"unit {unit}"


@pytest.mark.parametrize("weight_format", tiny_models.GGUF_FORMATS)
def test_every_block_format(weight_format: str, tmp_path: Path) -> None:
    model = open_model(tiny_models.write_gguf(tmp_path / "m.gguf", "llama", weight_format))
    tokens = random_tokens(70, model.spec.vocab)
    error, unit = worst_unit(model, "file", "bf16", tokens)
    assert error < BOUND, f"unit {unit}"
    options = {"kv_format": "bf16", "pages": 2}
    exact = logits_of(make_device(model, DeviceOptions(backend="reference", **options)), tokens)
    got = logits_of(make_device(model, DeviceOptions(**options)), tokens)
    assert np.sqrt(np.mean((got - exact) ** 2) / np.mean(exact**2)) < FORMAT_BOUNDS[weight_format]


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_every_unit_of_the_real_models(name: str) -> None:
    path = cached(name)
    if path is None:
        pytest.skip(f"{name} is not in the model cache (kvern pull {name})")
    model = open_model(path)
    tokens = model.tokenizer().encode("The sea lay flat and grey, and nobody in the harbour spoke of the ship.")
    error, unit = worst_unit(model, "file", "bf16", tokens)
    assert error < BOUND, f"unit {unit}"
