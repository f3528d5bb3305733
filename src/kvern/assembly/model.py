"""A path becomes a loaded model, a loaded model becomes a device."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from kvern.assembly.capable import chosen_network
from kvern.assembly.device_options import DeviceOptions
from kvern.models.network import Model
from kvern.models.open import OpenModel, open_network
from kvern.models.spec import ModelSpec
from kvern.runtime.device import Device
from kvern.weights.chat_template import ChatTemplate
from kvern.weights.text_side import source_of
from kvern.weights.tokenizer import Tokenizer

__all__ = ["DeviceOptions", "LoadedModel", "make_device", "open_model"]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model file opened and checked; its matrices are mapped, not read. Close it once its devices are made."""

    path: Path
    opened: OpenModel

    @property
    def spec(self) -> ModelSpec:
        return self.opened.spec

    @property
    def network(self) -> Model:
        return self.opened.network

    @property
    def file_bytes(self) -> int:
        return self.opened.file.file_bytes

    @property
    def weight_formats(self) -> tuple[str, ...]:
        """Formats of the matrices, the one with most elements first."""
        elements: dict[str, int] = {}
        for weight in self.network.weights():
            elements[weight.format] = elements.get(weight.format, 0) + weight.n * weight.k
        return tuple(sorted(elements, key=lambda name: -elements[name]))

    def tokenizer(self) -> Tokenizer:
        """Raises ModelFileError."""
        return source_of(self.opened.file).tokenizer(self.opened.file)

    def chat_template(self, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The model's own template, None for a base model. Raises ModelFileError."""
        return source_of(self.opened.file).template(self.opened.file, tokenizer)

    def close(self) -> None:
        self.opened.file.close()


def open_model(path: str | Path) -> LoadedModel:
    """Open a GGUF file, a folder with config.json and safetensors, or a quantised file. Raises ModelFileError."""
    return LoadedModel(Path(path), open_network(Path(path)))


def make_device(model: LoadedModel, options: DeviceOptions) -> Device:
    """Bring the weights to a back end and reserve its KV pages. Raises ModelFileError, ConfigError."""
    network = chosen_network(model.network, options)
    # The native library is loaded only where it is used.
    maker = import_module(f"kvern.assembly.{options.backend}_device")
    device: Device = maker.make(network, options)
    return device
