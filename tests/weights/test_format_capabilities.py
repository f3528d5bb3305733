"""What goes with what: every combination that is offered can be made, every other is refused with the reason."""

from __future__ import annotations

import pytest
import tiny_models

from kvern.assembly.capable import backend_for, chosen_network, native_serves
from kvern.assembly.device_options import DeviceOptions
from kvern.config.schema import KV_FORMATS, WEIGHT_FORMATS
from kvern.core.errors import ConfigError
from kvern.formats import activations
from kvern.formats import kv as kv_formats
from kvern.formats import weights as weight_formats
from kvern.formats.capabilities import activation_name, activation_refusal, kv_lines, load_refusal, weight_lines
from kvern.models.network import Model
from kvern.models.open import open_network


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    return open_network(tiny_models.write_gguf(path, "llama", "F32", layers=1)).network


def test_settings_name_formats_that_are_there() -> None:
    assert set(KV_FORMATS) == set(kv_formats.NAMES)
    for name in WEIGHT_FORMATS[1:]:
        assert weight_formats.get(name).name.lower() == name.lower().replace("-", "_")
        assert load_refusal(name) is None


def test_the_table_lists_every_format_once() -> None:
    assert [line.name for line in weight_lines()] == list(weight_formats.NAMES)
    assert [line.name for line in kv_lines()] == list(kv_formats.NAMES)


@pytest.mark.parametrize("name", weight_formats.NAMES)
def test_every_weight_format_has_a_native_kernel_for_its_own_inputs(name: str) -> None:
    assert native_serves(name, weight_formats.get(name).activation)


@pytest.mark.parametrize("name", weight_formats.NAMES)
def test_what_native_code_serves_is_what_the_format_allows(name: str) -> None:
    """Native code never serves inputs that the reference could not check."""
    allowed = {*weight_formats.get(name).activations, "bf16"}  # AMX rounds the inputs of bf16 weights so
    assert {form for form in activations.FILES if native_serves(name, form)} <= allowed


def test_activation_formats_are_named_with_dashes() -> None:
    assert activation_name("int8-row") == activation_name("int8 row") == "int8 row"
    with pytest.raises(ConfigError, match="int8-group-32"):
        activation_name("int9")


def test_inputs_that_a_weight_format_cannot_take_are_refused_in_words(model: Model) -> None:
    assert activation_refusal("QOQ", "int8 row") is None
    with pytest.raises(ConfigError, match=r"QOQ cannot take inputs as 'int8 group 32'; they take int8 row"):
        chosen_network(model, DeviceOptions(weight_format="qoq", activation_format="int8-group-32"))


def test_layers_take_the_inputs_asked_for_and_the_ends_keep_their_own(model: Model) -> None:
    chosen = chosen_network(
        model, DeviceOptions(backend="reference", weight_format="w6", activation_format="int6-group-64")
    )
    assert chosen.layers[0].up.activation == "int6 group 64"
    assert chosen.embedding.activation is None and chosen.output.activation is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kv_format": "f32"}, "reference back end"),
        ({"weight_format": "w3"}, "w3"),
        ({"weight_format": "bitstack"}, "bitstack"),
        ({"activation_format": "int9"}, "int9"),
        ({"kv_format": "kv9"}, "kv9"),
        ({"backend": "tpu"}, "tpu"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_loaded(options: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DeviceOptions(**options)


def test_a_model_runs_natively_only_where_every_matrix_does(model: Model) -> None:
    assert backend_for(model) == "cpu"
    assert backend_for(model.with_activation("int8 row")) == "reference"
