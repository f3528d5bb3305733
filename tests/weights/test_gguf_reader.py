"""The GGUF reader: what it reads, and that it refuses everything else by name."""

from __future__ import annotations

import gc
import struct
import time
from pathlib import Path

import gguf_writer
import numpy as np
import pytest
import tiny_models
from gguf_writer import RawTensor, gguf_bytes, text

from kvern.core.errors import ModelFileError
from kvern.formats import weights
from kvern.weights import gguf, hub, model_files


def f32(name: str, *shape: int) -> RawTensor:
    return RawTensor(name, 0, shape, np.arange(np.prod(shape), dtype="<f4").tobytes())


PLAIN = {"general.architecture": "llama", "a.count": 7, "a.rate": 0.5, "a.on": True, "a.names": ["x", "é", ""],
         "a.ids": np.array([1, -2, 3], "<i4"), "a.below": -5, "a.flags": [True, False], "a.none": []}  # fmt: skip


def at(folder: Path, raw: bytes, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(raw)
    return path


def refused(folder: Path, raw: bytes, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        gguf.read(at(folder, raw))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [1, 32, 256])
def test_reads_metadata_and_tensors(tmp_path: Path, version: int, alignment: int) -> None:
    metadata = PLAIN | {"general.alignment": alignment}
    raw = gguf_bytes(metadata, [f32("w", 3, 5), f32("v", 4)], version, alignment)
    with gguf.read(at(tmp_path, raw)) as file:
        assert file.metadata == {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in metadata.items()}
        assert file.info("w").shape == (3, 5)
        assert file.info("w").format == "F32"
        assert file.data("w").view("<f4").tolist() == list(range(15))
        assert file.data("v").view("<f4").tolist() == [0, 1, 2, 3]
        assert file.file_bytes == len(raw)
        with pytest.raises(ValueError, match="read-only"):
            file.data("w")[0] = 1
        with pytest.raises(ModelFileError, match="has no tensor 'x'"):
            file.data("x")


@pytest.mark.parametrize("name", tiny_models.GGUF_FORMATS)
def test_reads_every_format_of_a_tiny_model(tmp_path: Path, name: str) -> None:
    path = tiny_models.write_gguf(tmp_path / "m.gguf", "qwen3", name)
    expected = tiny_models.random_weights("qwen3", 0, tiny_models.sizes_of("qwen3"))
    with model_files.read(path) as file:
        info = file.info("blk.1.ffn_down.weight")
        assert info.format == name
        found = weights.get(name).decode(file.data(info.name), *info.shape)
    wanted = expected["model.layers.1.mlp.down_proj.weight"]
    assert np.abs(found - wanted).max() <= 0.15 * np.abs(wanted).max()


def test_released_tensors_can_be_read_again_and_closing_waits_for_views(tmp_path: Path) -> None:
    file = gguf.read(at(tmp_path, gguf_bytes({}, [f32("w", 64, 1024)])))
    view = file.data("w")
    before = view.copy()
    file.release("w")
    np.testing.assert_array_equal(view, before)
    file.close()
    np.testing.assert_array_equal(view, before)
    del view
    gc.collect()
    file.close()


def test_a_quarter_million_tokens_are_read_quickly(tmp_path: Path) -> None:
    tokens = [f"▁token{i}" for i in range(262_144)]
    path = at(tmp_path, gguf_bytes({"tokenizer.ggml.tokens": tokens}, []))
    began = time.perf_counter()
    with gguf.read(path) as file:
        assert file.metadata["tokenizer.ggml.tokens"] == tokens
    assert time.perf_counter() - began < 2.0  # some 0.15 s when the machine is idle


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    raw = gguf_bytes(PLAIN, [f32("w", 3, 5), RawTensor("q", 3, (2, 32), bytes(40))])
    end = len(raw) - 24  # the padding after the last tensor may go
    with gguf.read(at(tmp_path, raw[:end])) as file:
        assert set(file.tensors) == {"w", "q"}
    for length in range(end):
        with pytest.raises(ModelFileError):
            gguf.read(at(tmp_path, raw[:length]))


def header(tensors: int, keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def described(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"GGML" + bytes(60), "not a GGUF file"),
        (header(0, 0, version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (header(1 << 40, 0), "claims 1099511627776 tensors"),
        (header(0, 1 << 63), "keys"),
        (header(1000, 0) + bytes(100), "more than fit"),
        (header(0, 1) + struct.pack("<Q", 1 << 62) + bytes(64), "claims 4611686018427387904 bytes"),
        (header(0, 1) + text("k") + struct.pack("<I", 13), "unknown type 13"),
        (header(0, 1) + text("k") + struct.pack("<IIQ", 9, 99, 1), "unknown type 99"),
        (header(0, 1) + text("k") + struct.pack("<IIQ", 9, 4, 1 << 61) + bytes(99), "elements in key 'k'"),
        (header(0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 99) + bytes(64), "more than fit"),
        (header(0, 1) + text("k") + struct.pack("<IIQQ", 9, 8, 2, 500) + bytes(64), "ends within key 'k'"),
        (header(0, 1) + text("k") + struct.pack("<IIQIQIQ", 9, 9, 1, 9, 1, 9, 0), "nested"),
        (header(0, 1) + text("k") + struct.pack("<IB", 7, 2), "neither 0 nor 1"),
        (header(0, 1) + struct.pack("<Q", 1) + b"\xff" + bytes(9), "UTF-8"),
        (header(0, 2) + (text("k") + struct.pack("<IB", 0, 1)) * 2, "'k' twice"),
        (header(0, 1) + text("") + struct.pack("<IB", 0, 1), "empty key"),
        (gguf_bytes({"general.alignment": 24}, []), "power of two"),
        (gguf_bytes({"general.alignment": 0}, []), "power of two"),
        (gguf_bytes({"general.alignment": "32"}, []), "power of two"),
        (gguf_bytes({"general.alignment": True}, []), "power of two"),
    ],
)  # fmt: skip
def test_hostile_headers_are_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    refused(tmp_path, raw + bytes(8), message)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("w", (4,), 16, 0)], r"'w' has type IQ2_XXS \(16\), which is not supported; supported are F32"),
        ([("w", (4,), 4096, 0)], "'w' has type 4096"),
        ([("w", (), 0, 0)], "0 dimensions"),
        ([("w", (1, 1, 1, 1, 1), 0, 0)], "5 dimensions"),
        ([("w", (0, 4), 0, 0)], "dimension is zero"),
        ([("w", (1 << 63,), 0, 0)], "out of range"),
        ([("w", (1 << 32, 1 << 32), 0, 0)], "larger than any file"),
        ([("w", (33, 2), 2, 0)], "blocks of 32"),
        ([("w", (4,), 0, 5)], "multiple of 32"),
        ([("w", (4,), 0, 1 << 62)], "after the end"),
        ([("w", (4096,), 0, 0)], "after the end"),
        ([("w", (16,), 0, 0), ("v", (16,), 0, 32)], "'w' and 'v' overlap"),
        ([("w", (4,), 0, 0), ("w", (4,), 0, 32)], "same name"),
    ],
)
def test_hostile_tensors_are_refused(tmp_path: Path, tensors: list, message: str) -> None:
    raw = header(len(tensors), 0) + b"".join(described(*tensor) for tensor in tensors)
    refused(tmp_path, raw + bytes(512), message)


def split_parts(folder: Path, count: int) -> list[Path]:
    paths = []
    for part in range(count):
        metadata = {"split.no": part, "split.count": count, "split.tensors.count": count, "part": part}
        raw = gguf_bytes(metadata, [f32(f"w{part}", part + 1, 2)])
        paths.append(at(folder, raw, f"m-{part + 1:05d}-of-{count:05d}.gguf"))
    return paths


def test_split_models_are_read_whole_from_any_part(tmp_path: Path) -> None:
    for path in (*split_parts(tmp_path, 3), tmp_path):
        with model_files.read(path) as file:
            assert file.metadata["part"] == 0
            assert [file.data(f"w{part}").size for part in range(3)] == [8, 16, 24]
            file.release("w2")


def test_split_models_with_a_part_missing_or_exchanged_are_refused(tmp_path: Path) -> None:
    first, second = split_parts(tmp_path, 2)
    kept = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(ModelFileError, match="says it is part 0"):
        gguf.read(first)
    second.unlink()
    with pytest.raises(ModelFileError, match="00002-of-00002.gguf: this part of the split model is missing"):
        gguf.read(first)
    refused(tmp_path, kept, "says it is part 1")


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is empty"):
        gguf.read(at(tmp_path, b""))
    with pytest.raises(ModelFileError, match="cannot be opened"):
        gguf.read(tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError, match="not a regular file"):
        gguf.read("/dev/zero")
    with pytest.raises(ModelFileError, match="no such file"):
        model_files.read(tmp_path / "absent.gguf")


def test_a_folder_with_two_models_asks_for_one(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        at(tmp_path, gguf_bytes({}, []), name)
    with pytest.raises(ModelFileError, match=r"several GGUF models \(a.gguf, b.gguf\)"):
        model_files.read(tmp_path)


@pytest.mark.peers
@pytest.mark.slow
def test_a_real_file_is_read_as_the_gguf_package_reads_it() -> None:
    peer = pytest.importorskip("gguf", reason="the gguf package is not installed")
    path = hub.cached("smollm2")
    if path is None:
        pytest.skip("smollm2 is not in the model cache; `kvern pull smollm2` fetches it")
    theirs = peer.GGUFReader(path)
    with gguf.read(path) as file:
        for tensor in theirs.tensors:
            info = file.info(tensor.name)
            assert (info.format, info.offset, info.nbytes) == (
                tensor.tensor_type.name, int(tensor.data_offset), int(tensor.n_bytes)
            )  # fmt: skip
            assert info.shape == tuple(int(size) for size in tensor.shape[::-1])
        assert len(file.tensors) == len(theirs.tensors)
        for key in ("general.architecture", "tokenizer.ggml.model", "general.file_type"):
            assert file.metadata[key] == theirs.fields[key].contents()


def test_the_writer_of_the_tests_writes_every_format_the_reader_knows() -> None:
    assert {number: name for name, number in gguf_writer.TYPE_NUMBERS.items()} == {
        number: entry[0] for number, entry in gguf.TENSOR_TYPES.items()
    }
    for name, block, block_bytes in gguf.TENSOR_TYPES.values():
        assert (weights.get(name).block, weights.get(name).block_bytes) == (block, block_bytes)
