"""kvern's own model file: what is written is what is read, and nothing else is."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from kvern.assembly.model import open_model
from kvern.assembly.quantiser import Job, QuantiseOptions, about, silent, write_and_measure
from kvern.core.errors import ModelFileError
from kvern.models.canonical import matrices, vectors
from kvern.quantise.layerwise import quantise
from kvern.quantise.recipe import Choice, Recipe
from kvern.weights import model_files
from kvern.weights.quantised_file import QuantisedFile
from kvern.weights.safetensors_writer import SafetensorsWriter

sys.path.insert(0, str(Path(__file__).parent.parent / "fuzz"))
import fuzz_readers

TOKENS = np.arange(6, 22, dtype=np.int32)[None]
FORMATS = ("W8A8", "Q4_0", "Q8_0", "BF16", "QOQ", "W6", "W4A4_MIXED")


def write(source: Path, out: Path, recipe: Recipe) -> Path:
    """Quantise plainly, without a report."""
    options = QuantiseOptions(model=str(source), format="test", out=out, report=False)
    with closing(open_model(source)) as model:
        found = quantise(model.network, recipe, TOKENS, lambda done, total: None)
        job = Job(model, found, out, about(model, recipe, TOKENS, options))
        return write_and_measure(job, options, silent)[0]


def plain(form: str) -> Choice:
    return Choice(form, method="nearest")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_gguf(tmp_path_factory.mktemp("source") / "m.gguf", "llama", "F32", layers=1)


@pytest.fixture(scope="module")
def good(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    choices = {"layers.0.query": plain("W4A4_MIXED"), "layers.0.up": plain("Q4_0")}
    return write(source, tmp_path_factory.mktemp("good") / "m.safetensors", Recipe(plain("W8A8"), choices))


@given(st.lists(st.sampled_from(FORMATS), min_size=9, max_size=9))
@settings(max_examples=6, deadline=None)
def test_every_matrix_comes_back_in_its_format(
    source: Path, tmp_path_factory: pytest.TempPathFactory, formats: list[str]
) -> None:
    with closing(open_model(source)) as model:
        names = [name for name, _ in matrices(model.network)]
        chosen = dict(zip(names, map(plain, formats), strict=True))
        path = write(source, tmp_path_factory.mktemp("any") / "m.safetensors", Recipe(plain("W8A8"), chosen))
        with closing(open_model(path)) as found:
            assert found.spec == model.spec
            for (name, weight), (same, original) in zip(
                matrices(found.network), matrices(model.network), strict=True
            ):
                assert name == same and weight.format == chosen[name].format
                step = np.abs(original.decode(0, weight.n)).max()
                assert np.abs(weight.decode(0, weight.n) - original.decode(0, weight.n)).max() < 0.2 * step
            for (name, vector), (same, original_vector) in zip(
                vectors(found.network), vectors(model.network), strict=True
            ):
                assert name == same and np.array_equal(vector.data, original_vector.data)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
@pytest.mark.parametrize("kind", ["gguf", "hf"])
def test_one_file_serves_alone(family: str, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    layers = {"layers": 1}
    origin = (
        tiny_models.write_gguf(folder / "m.gguf", family, "F32", **layers)
        if kind == "gguf"
        else tiny_models.write_hf(folder, family, "F32", **layers)
    )
    path = write(origin, tmp_path / "m.safetensors", Recipe(plain("W8A8")))
    text = "the <|im_end|> Straße 42"
    with closing(open_model(origin)) as before:
        ids = before.tokenizer().encode(text)
        ends = before.tokenizer().eos_ids
        template = before.chat_template(before.tokenizer())
    for file in folder.iterdir():
        file.unlink()
    with closing(open_model(path)) as after:
        tokenizer = after.tokenizer()
        assert tokenizer.encode(text) == ids and tokenizer.eos_ids == ends
        again = after.chat_template(tokenizer)
        assert again is not None and template is not None and again.source == template.source


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def changed(good: Path, target: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """The file with its header (and the kvern object in it) edited by ``change``."""
    header, data = header_of(good)
    inside = json.loads(header["__metadata__"]["kvern"])
    change(header, inside)
    if "__metadata__" in header:
        header["__metadata__"]["kvern"] = json.dumps(inside)
    raw = json.dumps(header).encode()
    target.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return target


def _set(path: str, value: object) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(_: dict[str, Any], inside: dict[str, Any]) -> None:
        *way, last = path.split("/")
        here: Any = inside
        for key in way:
            here = here[int(key)] if isinstance(here, list) else here[key]
        here[last] = value

    return change


def _rename(old: str, new: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(header: dict[str, Any], _: dict[str, Any]) -> None:
        header[new] = header.pop(old)

    return change


LIES = {
    "another version": (_set("version", 2), "version 2"),
    "no version": (lambda header, inside: inside.pop("version"), "version"),
    "an unknown key": (_set("extra", 1), "extra"),
    "an unknown format": (_set("matrices/layers.0.key/format", "Q9"), "Q9"),
    "another format": (_set("matrices/layers.0.key/format", "Q4_0"), "layers.0.key"),
    "too many rows": (_set("matrices/layers.0.key/rows", 1 << 40), "out of range"),
    "other rows": (_set("matrices/layers.0.key/rows", 64), "layers.0.key"),
    "negative columns": (_set("matrices/layers.0.key/columns", -256), "out of range"),
    "text for a number": (_set("matrices/layers.0.key/columns", "256"), "columns"),
    "inputs it cannot take": (_set("matrices/layers.0.key/activation", "bf16"), "int8 row"),
    "unknown inputs": (_set("matrices/layers.0.key/activation", "int3"), "int3"),
    "an unknown family": (_set("spec/family", "other"), "other"),
    "a path for a family": (_set("spec/family", "spec"), "spec"),
    "no layers": (_set("spec/layers", []), "layers"),
    "no vocabulary": (_set("spec/vocab", 0), "vocab"),
    "another size": (_set("spec/hidden", 512), "512"),
    "an end token outside": (_set("spec/eos", [10**9]), "end token"),
    "too few frequencies": (_set("spec/layers/0/rope/frequencies", [1.0]), "frequencies"),
    "no epsilon": (_set("spec/norm_eps", 0.0), "norm_eps"),
    "a missing document": (_set("documents", ["nothing.json"]), "nothing.json"),
    "a document twice": (_set("documents", ["tokenizer_keys.json"] * 2), "twice"),
    "a missing matrix": (_rename("layers.0.key", "layers.0.other"), "layers.0.key"),
    "a missing norm": (_rename("output_norm", "other_norm"), "output_norm"),
    "a header too many": (_rename("layers.0.query.header", "layers.0.up.header"), "header"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused_with_what_is_wrong(lie: str, good: Path, tmp_path: Path) -> None:
    change, named = LIES[lie]
    with pytest.raises(ModelFileError, match=named):
        open_model(changed(good, tmp_path / "m.safetensors", change)).close()


def test_a_norm_that_is_not_finite_is_refused(good: Path, tmp_path: Path) -> None:
    raw = bytearray(good.read_bytes())
    header, _ = header_of(good)
    begin = 8 + int.from_bytes(raw[:8], "little") + header["output_norm"]["data_offsets"][0]
    raw[begin : begin + 4] = np.float32(np.inf).tobytes()
    (tmp_path / "m.safetensors").write_bytes(raw)
    with pytest.raises(ModelFileError, match="not finite"):
        open_model(tmp_path / "m.safetensors")


def test_a_tokenizer_with_impossible_ids_is_refused(good: Path, tmp_path: Path) -> None:
    raw = good.read_bytes()
    key = b'"tokenizer.ggml.bos_token_id": '
    at = raw.index(key) + len(key)
    assert raw[at : at + 1] == b"1"
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw[:at] + b"[" + raw[at + 1 :])
    with closing(open_model(path)) as model, pytest.raises(ModelFileError, match="tokenizer_keys.json"):
        model.tokenizer()


def test_damaged_files_are_read_or_refused_and_never_more(good: Path, tmp_path: Path) -> None:
    """Changes of the header's bytes, as the fuzzer of the readers makes them."""
    raw, draw, path, outcomes = good.read_bytes(), random.Random(7), tmp_path / "m.safetensors", set()
    length = 8 + int.from_bytes(raw[:8], "little")
    text = raw[:length].rstrip(b" ")
    for _ in range(120):
        head = fuzz_readers.mutate("safetensors", text, text, draw)
        path.write_bytes(head.ljust(length) + raw[length:])
        try:
            with closing(open_model(path)) as model:
                model.tokenizer()
                outcomes.add("read")
        except ModelFileError as error:
            outcomes.add(str(error).replace(str(path), "")[:30])
    assert len(outcomes) > 8


def test_other_safetensors_files_are_not_taken_for_ones_of_kvern(tmp_path: Path) -> None:
    folder = tiny_models.write_hf(tmp_path / "hf", "llama", "F32", layers=1)
    with closing(model_files.read(folder)) as file:
        assert not isinstance(file, QuantisedFile)


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text("old")
    with pytest.raises(ModelFileError, match="needs"), SafetensorsWriter(path, ["a"], 100) as writer:
        writer.add("a", "U8", (3,), [np.zeros(2, np.uint8)])
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["m.safetensors"]


def test_a_writer_streams_parts_and_any_reader_can_list_them(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    parts = [np.arange(4, dtype="<f4"), np.arange(4, 8, dtype="<f4")]
    with SafetensorsWriter(path, ["a", "b"], 100) as writer:
        writer.add("a", "F32", (2, 4), iter(parts))
        writer.add("b", "U8", (0,), [])
        writer.finish({"note": "first"})
        writer.finish({"note": "second, longer than before"})
        assert not path.exists()
        writer.publish()
    with closing(model_files.read(path)) as file:
        assert file.metadata == {"note": "second, longer than before"}
        assert np.array_equal(file.data("a").view("<f4"), np.arange(8, dtype=np.float32))
    assert os.listdir(tmp_path) == ["m.safetensors"]
