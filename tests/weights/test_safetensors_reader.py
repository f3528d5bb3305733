"""The safetensors reader: what it reads, and that it refuses everything else by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from safetensors_writer import safetensors_bytes, write

from kvern.core.errors import ModelFileError
from kvern.formats import weights
from kvern.weights import model_files, safetensors

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def with_header(header: object, data: bytes = bytes(8)) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def at(folder: Path, raw: bytes, name: str = "model.safetensors") -> Path:
    path = folder / name
    path.write_bytes(raw)
    return path


def tensors(*names: str) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: ("F32", (2, 3), np.arange(6, dtype="<f4").tobytes()) for name in names}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_reads_a_tiny_model(tmp_path: Path, dtype: str) -> None:
    folder = tiny_models.write_hf(tmp_path / "m", "gemma3", dtype)
    expected = tiny_models.random_weights("gemma3", 0, tiny_models.sizes_of("gemma3"))
    for path in (folder, folder / "model.safetensors"):
        with model_files.read(path) as file:
            assert set(file.tensors) == set(expected)
            assert file.metadata == {"format": "pt"}
            info = file.info("model.layers.3.mlp.up_proj.weight")
            assert (info.format, info.shape) == (dtype, (512, 256))
            found = weights.get(dtype).decode(file.data(info.name), *info.shape)
            np.testing.assert_allclose(found, expected[info.name], rtol=2**-8, atol=1e-7)


def test_reads_other_types_scalars_and_empty_tensors(tmp_path: Path) -> None:
    written = {"ids": ("I64", (3,), bytes(24)), "scalar": ("F32", (), bytes(4)), "none": ("U8", (0, 5), b"")}
    with safetensors.read(write(tmp_path / "m.safetensors", written)) as file:
        assert {name: (t.format, t.shape, t.nbytes) for name, t in file.tensors.items()} == {
            "ids": ("I64", (3,), 24), "scalar": ("F32", (), 4), "none": ("U8", (0, 5), 0),
        }  # fmt: skip
        assert file.data("none").size == 0


def test_every_truncation_and_extension_is_refused(tmp_path: Path) -> None:
    raw = safetensors_bytes(tensors("a", "b"))
    for length in range(len(raw)):
        with pytest.raises(ModelFileError):
            safetensors.read(at(tmp_path, raw[:length]))
    with pytest.raises(ModelFileError, match="do not cover"):
        safetensors.read(at(tmp_path, raw + b"x"))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ((1 << 63).to_bytes(8, "little") + bytes(64), "header claims"),
        (with_header(b"{"), "JSON cannot be read"),
        (with_header(b"[1]"), "not an object"),
        (with_header(b"\xff{}"), "JSON cannot be read"),
        (with_header(b'{"a":' * 100_000), "JSON cannot be read"),
        (with_header(b"[" * 100_000), "JSON cannot be read"),
        (with_header(b'{"a":' + b"9" * 5000 + b"}"), "JSON cannot be read|exactly"),
        (with_header(b'{"a":NaN}'), "JSON cannot be read"),
        (with_header(f'{{"a":{json.dumps(ONE)},"a":{json.dumps(ONE)}}}'.encode()), "twice"),
        (with_header(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), "twice"),
        (with_header({"a": 3}), "exactly dtype, shape and data_offsets"),
        (with_header({"a": ONE | {"more": 1}}), "exactly dtype, shape and data_offsets"),
        (with_header({"a": ONE | {"dtype": "F31"}}), "the type 'F31'; known are"),
        (with_header({"a": ONE | {"dtype": ["F32"]}}), "the type"),
        (with_header({"a": ONE | {"shape": [-2]}}), "proper shape"),
        (with_header({"a": ONE | {"shape": [2.0]}}), "proper shape"),
        (with_header({"a": ONE | {"shape": [True, 2]}}), "proper shape"),
        (with_header({"a": ONE | {"shape": [1] * 9}}), "proper shape"),
        (with_header({"a": ONE | {"shape": [1 << 40, 1 << 40]}}), "larger than any file"),
        (with_header({"a": ONE | {"shape": [1 << 62]}}), "out of range"),
        (with_header({"a": ONE | {"shape": [3]}}), "needs 12 bytes, not 8"),
        (with_header({"a": ONE | {"data_offsets": [8, 0]}}), "needs 8 bytes, not -8"),
        (with_header({"a": ONE | {"data_offsets": [0, 8, 16]}}), "proper data_offsets"),
        (with_header({"a": ONE | {"data_offsets": [4, 12]}}), "after the end"),
        (with_header({"a": ONE, "b": ONE}), "overlap"),
        (with_header({"a": ONE}, bytes(9)), "do not cover"),
        (with_header({"a": ONE, "__metadata__": {"k": 1}}), "__metadata__"),
        (with_header({"a": ONE, "__metadata__": []}), "__metadata__"),
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        safetensors.read(at(tmp_path, raw))


def sharded(folder: Path, weight_map: object) -> Path:
    write(folder / "a.safetensors", tensors("x", "y"))
    write(folder / "b.safetensors", tensors("z"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


WHOLE = {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}


def test_sharded_models_are_read_through_the_index(tmp_path: Path) -> None:
    for path in (sharded(tmp_path, WHOLE), tmp_path / "model.safetensors.index.json"):
        with model_files.read(path) as file:
            assert set(file.tensors) == {"x", "y", "z"}
            assert file.info("z").part == 1
            assert file.data("z").view("<f4").tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (["a.safetensors"], "not an object of file names"),
        ({"x": 3}, "not an object of file names"),
        ({}, "names 0 files"),
        (WHOLE | {"z": "../b.safetensors"}, "not the name of a safetensors file in this folder"),
        (WHOLE | {"z": "/etc/passwd"}, "not the name of a safetensors file in this folder"),
        (WHOLE | {"z": "b.bin"}, "not the name of a safetensors file in this folder"),
        (WHOLE | {"z": "absent.safetensors"}, "cannot be opened"),
        (WHOLE | {"more": "b.safetensors"}, "'more' is in none of the files"),
        ({"x": "a.safetensors", "z": "b.safetensors"}, "holds 'y', which"),
        (WHOLE | {"x": "b.safetensors"}, "holds 'x', which"),
    ],
)
def test_hostile_indexes_are_refused(tmp_path: Path, weight_map: object, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        safetensors.read(sharded(tmp_path, weight_map))


def test_links_may_not_leave_the_folder_but_for_the_blobs_of_the_hub_cache(tmp_path: Path) -> None:
    folder = tmp_path / "models--o--n" / "snapshots" / "abc"
    blobs = tmp_path / "models--o--n" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    sharded(folder, WHOLE)
    (folder / "b.safetensors").rename(blobs / "hash")
    (folder / "b.safetensors").symlink_to(blobs / "hash")
    with safetensors.read(folder) as file:
        assert set(file.tensors) == {"x", "y", "z"}
    (blobs / "hash").rename(tmp_path / "elsewhere")
    (folder / "b.safetensors").unlink()
    (folder / "b.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelFileError, match="leads out of the model's folder"):
        safetensors.read(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "x.CKPT", "w.pkl"])
def test_pickles_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    at(tmp_path, b"\x80\x04.", name)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(ModelFileError, match=f"{name}: is a pickled checkpoint; loading one runs whatever code"):
            model_files.read(path)


def test_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="has neither"):
        model_files.read(tmp_path)
