"""From a path to a `Model` with its weights mapped: GGUF files, Hugging Face folders, kvern's own quantised files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvern.core.errors import ModelFileError
from kvern.formats import weights as weight_formats
from kvern.models import canonical, registry
from kvern.models.basics import GgufFacts
from kvern.models.build import build, find_root
from kvern.models.facts import Facts
from kvern.models.network import Model
from kvern.models.spec import ModelSpec, require, with_generation
from kvern.weights import model_files
from kvern.weights.gguf import GgufFile
from kvern.weights.mapped_file import TensorFile
from kvern.weights.quantised_file import QuantisedFile
from kvern.weights.safetensors import SafetensorsFile

MAX_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, eq=False)
class OpenModel:
    """A model whose matrices still lie in ``file``; keep it open until a device has taken them."""

    network: Model
    file: TensorFile

    @property
    def spec(self) -> ModelSpec:
        return self.network.spec


def open_network(path: Path) -> OpenModel:
    """Read what the file says of itself and find every tensor. Raises ModelFileError."""
    file = model_files.read(path)
    try:
        network = NETWORKS[type(file)](file)
    except ModelFileError:
        file.close()
        raise
    return OpenModel(network, file)


def _from_gguf(file: TensorFile) -> Model:
    architecture = Facts(file.metadata).text("general.architecture")
    family = registry.for_gguf(architecture)
    find_root(file, family.GGUF)
    table = file.info(family.GGUF.whole["embedding"])
    require(len(table.shape) == 2, f"{file.path}: tensor {table.name!r} has shape {table.shape}, not a matrix")
    factors = None
    if "rope_freqs.weight" in file.tensors:
        info = file.info("rope_freqs.weight")
        require(len(info.shape) == 1, f"{file.path}: tensor {info.name!r} has shape {info.shape}, not a vector")
        data = file.data(info.name)
        factors = np.array(weight_formats.get(info.format).decode(data, 1, info.shape[0])[0])
    tied = family.GGUF.whole["output"] not in file.tensors
    spec = family.spec_from_gguf(GgufFacts(file.metadata, table.shape[0], tied, factors))
    return build(spec, family, family.GGUF, file)


def _from_hf(file: TensorFile) -> Model:
    config = read_json(file.path.parent / "config.json")
    if config is None:
        raise ModelFileError(f"{file.path.parent}: has no config.json beside its weights")
    facts = Facts(config)
    family = registry.for_hf(facts.text("model_type"))
    spec = with_generation(family.spec_from_hf(facts), read_json(file.path.parent / "generation_config.json") or {})
    return build(spec, family, family.HF, file)


def _from_quantised(file: TensorFile) -> Model:
    assert isinstance(file, QuantisedFile)
    return canonical.from_file(file)


# Each kind of file that ``model_files.read`` opens, and how a model is found in it.
NETWORKS: dict[type[TensorFile], Callable[[TensorFile], Model]] = {
    GgufFile: _from_gguf,
    SafetensorsFile: _from_hf,
    QuantisedFile: _from_quantised,
}


def read_json(path: Path) -> dict[str, object] | None:
    """The object in a JSON file, None when there is no such file; raises ModelFileError when it is something else."""
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelFileError(f"{path}: is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ModelFileError(f"{path}: holds no JSON object")
    return found
