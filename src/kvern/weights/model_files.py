"""From a path that a person gives to an open file of tensors."""

from __future__ import annotations

from pathlib import Path

from kvern.core.errors import ModelFileError
from kvern.weights import gguf, quantised_file, safetensors
from kvern.weights.gguf import GgufFile
from kvern.weights.safetensors import SafetensorsFile


def read(path: str | Path) -> GgufFile | SafetensorsFile:
    """Open a GGUF file, a safetensors file (kvern's own kind is a `QuantisedFile`), or a folder with one of them.

    A folder with safetensors is read as such; one with a single GGUF model (all parts of a split one) as that.
    Raises ModelFileError, also for pickled weights.
    """
    path = Path(path)
    safetensors.refuse_pickle(path)
    if not path.exists():
        raise ModelFileError(f"{path}: there is no such file or folder")
    if path.is_dir():
        return _read_folder(path)
    if path.suffix.lower() == ".gguf" or _starts_with_magic(path):
        return gguf.read(path)
    return quantised_file.recognise(safetensors.read(path))


def _read_folder(folder: Path) -> GgufFile | SafetensorsFile:
    models = [path for path in sorted(folder.glob("*.gguf")) if not gguf.is_later_part(path)]
    if any(folder.glob("*.safetensors")) or not models:
        return safetensors.read(folder)
    if len(models) > 1:
        raise ModelFileError(f"{folder}: has several GGUF models ({', '.join(m.name for m in models)}): name one")
    return gguf.read(models[0])


def _starts_with_magic(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(4) == gguf.MAGIC
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be opened ({error})") from error
