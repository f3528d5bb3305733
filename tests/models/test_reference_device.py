"""The reference device keeps the contract of docs/architecture.md: any units, any chunks, any pages, any stop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
from device_steps import Piece, batch_of, logits_of, random_tokens, run

from kvern.assembly.model import DeviceOptions, LoadedModel, make_device, open_model
from kvern.core.errors import ConfigError
from kvern.kernels.reference.device import ReferenceDevice

REFERENCE = DeviceOptions(backend="reference", kv_format="f32", pages=8)


@pytest.fixture(scope="module", params=tiny_models.FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("tiny")
    return open_model(tiny_models.write_gguf(folder / "m.gguf", request.param, "Q8_0"))


def device_of(model: LoadedModel, kv_format: str = "f32") -> ReferenceDevice:
    return make_device(model, DeviceOptions(backend="reference", kv_format=kv_format, pages=8))


def test_a_run_cut_at_any_unit_has_the_same_bits(model: LoadedModel) -> None:
    tokens = random_tokens(70, model.spec.vocab)
    whole = logits_of(device_of(model), tokens)
    for cuts in ([1], [2], [1, 2, 3], list(range(1, model.spec.units))):
        device = device_of(model)
        hidden = None
        for first, last in zip([0, *cuts], [*cuts, model.spec.units], strict=True):
            piece = Piece(tokens, [3, 5], first=first, last=last, hidden=hidden)
            batch = batch_of(device, [piece])
            result = device.step(batch)
            assert result.reached.tolist() == [last]
            hidden = batch.hidden.copy()
        np.testing.assert_array_equal(result.logits, whole)


def test_slices_at_different_units_share_a_step(model: LoadedModel) -> None:
    first, second = random_tokens(20, model.spec.vocab, 1), random_tokens(33, model.spec.vocab, 2)
    alone = device_of(model)
    expected = [run(alone, Piece(first, [0])).logits, run(alone, Piece(second, [1])).logits]
    device = device_of(model)
    early = batch_of(device, [Piece(second, [1], last=3)])
    device.step(early)
    result = run(device, Piece(first, [0]), Piece(second, [1], first=3, hidden=early.hidden))
    np.testing.assert_array_equal(result.logits, np.concatenate(expected))


def test_a_stop_before_the_step_leaves_everything_untouched(model: LoadedModel) -> None:
    device = device_of(model)
    batch = batch_of(device, [Piece(random_tokens(5, model.spec.vocab), [0])])
    batch.stop[0] = 1
    result = device.step(batch)
    assert result.reached.tolist() == [0]
    assert not batch.hidden.any() and not result.logits.any()


class _Stopping(np.ndarray):
    """A stop byte that rises when it has been looked at ``after`` times, as if another thread had set it then."""

    after = 0

    def __getitem__(self, index: object) -> object:
        self.after -= 1
        return int(self.after < 0)


def test_a_stop_inside_the_step_parks_rows_that_go_on_to_the_same_bits(model: LoadedModel) -> None:
    tokens = random_tokens(40, model.spec.vocab)
    whole = logits_of(device_of(model), tokens)
    device = device_of(model)
    batch = batch_of(device, [Piece(tokens, [0]), Piece(tokens, [1], last=0)])
    batch.stop = np.zeros(1, np.uint8).view(_Stopping)
    batch.stop.after = 3
    result = device.step(batch)
    reached = int(result.reached[0])
    assert 0 < reached < device.units and result.reached[1] == 0
    assert not result.logits.any()
    continued = run(device, Piece(tokens, [0], first=reached, hidden=batch.hidden[:40]))
    np.testing.assert_array_equal(continued.logits, whole)


@pytest.mark.parametrize("chunk", [1, 7, 63, 64, 65])
def test_chunks_give_the_same_logits_to_rounding(model: LoadedModel, chunk: int) -> None:
    tokens = random_tokens(130, model.spec.vocab)
    whole = logits_of(device_of(model), tokens)
    chunked = logits_of(device_of(model), tokens, chunk)
    np.testing.assert_allclose(chunked, whole, rtol=0, atol=2e-5 * np.abs(whole).max())


def test_any_pages_in_any_order_and_a_copied_page(model: LoadedModel) -> None:
    tokens = random_tokens(150, model.spec.vocab)
    expected = logits_of(device_of(model), tokens)[149:]
    device = device_of(model)
    run(device, Piece(tokens, [6, 2, 4], end=149))
    device.copy_page(4, 1)
    run(device, Piece([7] * 150, [0, 3, 4]))  # another sequence takes the page that was copied
    got = run(device, Piece(tokens, [6, 2, 1], begin=149)).logits
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("kv_format", "tolerance"), [("bf16", 2e-2), ("kv8", 3e-2)])
def test_kv_formats_stay_near_exact_ones(model: LoadedModel, kv_format: str, tolerance: float) -> None:
    tokens = random_tokens(100, model.spec.vocab)
    exact, rounded = logits_of(device_of(model), tokens), logits_of(device_of(model, kv_format), tokens)
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 0 < error < tolerance


def test_page_bytes_count_all_layers_keys_and_values(model: LoadedModel) -> None:
    per_token = sum(layer.kv_heads * layer.head_dim for layer in model.spec.layers)
    assert device_of(model, "bf16").page_bytes == 64 * per_token * 2 * 2
    assert device_of(model, "kv8").page_bytes == sum(
        64 * 2 * layer.kv_heads * (layer.head_dim + 4) for layer in model.spec.layers
    )


def test_only_wanted_rows_get_logits(model: LoadedModel) -> None:
    tokens = random_tokens(12, model.spec.vocab)
    every = logits_of(device_of(model), tokens)
    some = run(device_of(model), Piece(tokens, [0], logits=[3, 11])).logits
    np.testing.assert_allclose(some, every[[3, 11]], rtol=0, atol=1e-5 * np.abs(every).max())
    assert run(device_of(model), Piece(tokens, [0], logits=[])).logits.shape == (0, model.spec.vocab)


def test_activations_choice_is_checked(tmp_path: Path) -> None:
    opened = open_model(tiny_models.write_gguf(tmp_path / "m.gguf", "llama"))
    with pytest.raises(ConfigError, match="rounded"):
        make_device(opened, DeviceOptions(backend="reference", activations="rounded"))
