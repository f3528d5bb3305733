"""``kvern quantize`` from end to end on a tiny model: the file, its report, and text made from it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from kvern.assembly.mixed import LADDER, quantise_mixed
from kvern.assembly.model import open_model
from kvern.assembly.quantiser import QuantiseOptions, calibration_windows, quantise_model, silent
from kvern.cli.stage_bar import StageBar
from kvern.core.errors import ConfigError
from kvern.models.canonical import matrices
from kvern.weights.quantised_file import QuantisedFile

Command = Callable[..., subprocess.CompletedProcess[str]]
TEXT = "The keeper climbed the stairs, wound the clockwork, and wrote: wind from the north, two ships. " * 4


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_gguf(
        tmp_path_factory.mktemp("source") / "tiny.gguf", "llama", "F32", layers=1, context=192
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def options(source: Path, text: Path, out: Path, **changes: object) -> QuantiseOptions:
    given: dict[str, object] = {
        "model": str(source), "out": out, "calibration": text, "held_out": text, "calibration_tokens": 192,
        "threads": 1,
    }  # fmt: skip
    return QuantiseOptions(**(given | changes))


def test_the_command_writes_a_file_that_generates(kvern: Command, source: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.safetensors"
    done = kvern("quantize", source, "--format", "w8a8", "-o", out, "--calibration", text, "--held-out", text,
                 "--calibration-tokens", 192, "--threads", 1)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == str(out)
    assert {"size", "mean", "top-1", "perplexity"} <= {line.split()[0] for line in lines[:-1]}
    report = json.loads((tmp_path / "tiny.report.json").read_text())
    assert 0 < report["quality"]["divergence"] < 0.05
    assert len(report["matrices"]) == 1 + 7 + 1
    page = (tmp_path / "tiny.report.html").read_text()
    assert page.count("<rect") == 9 and "<script" not in page
    said = kvern("generate", out, "--prompt", "The keeper", "--max-tokens", 8, "--temperature", 0, "--threads", 1)
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize("form", ["qoq", "q4_1"])
def test_calibration_comes_nearer_than_rounding_alone(form: str, source: Path, text: Path, tmp_path: Path) -> None:
    found = {}
    for method in ("nearest", None):
        chosen = options(source, text, tmp_path / f"{method}.safetensors", format=form, method=method)
        found[method] = quantise_model(chosen)[1].quality.divergence
    assert found[None] < 0.8 * found["nearest"]


def test_mixed_precision_keeps_its_target_and_says_what_it_chose(source: Path, text: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    path, report = quantise_mixed(
        options(source, text, tmp_path / "m.safetensors", format="mixed"), 0.002,
        lambda what, done, total: stages.append(what),
    )  # fmt: skip
    with closing(open_model(path)) as model:
        kept = {name: weight.format for name, weight in matrices(model.network) if "." in name}
    assert kept == report.search["widths"]
    assert set(kept.values()) <= set(LADDER) and len(set(kept.values())) > 1
    assert report.quality.divergence < 0.02
    assert {"quantising", "sensitivity", "comparing"} <= set(stages)


def test_the_text_that_a_model_writes_depends_on_the_seed_alone(source: Path, text: Path, tmp_path: Path) -> None:
    with closing(open_model(source)) as model:
        first, same, other = (
            calibration_windows(
                model, options(source, text, tmp_path / "m", format="w8a8", calibration=None, seed=seed), silent
            )
            for seed in (1, 1, 2)
        )
        special = [token for token in range(model.spec.vocab) if model.tokenizer().is_special(token)]
    assert first.shape == (1, 192) and np.array_equal(first, same) and not np.array_equal(first, other)
    assert not np.isin(first[:, len(model.tokenizer().encode("")) :], special).any()


REFUSED = {
    "a format that is not there": ({"format": "w3"}, "w3"),
    "a folder that is not there": ({"out": Path("nowhere/m.safetensors")}, "no folder"),
    "a calibration text that is not there": ({"calibration": Path("nowhere.txt")}, "nowhere.txt"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(
    what: str, source: Path, text: Path, tmp_path: Path
) -> None:
    changes, named = REFUSED[what]
    with pytest.raises(ConfigError, match=named):
        quantise_model(replace(options(source, text, tmp_path / "m.safetensors", format="w8a8"), **changes))
    assert list(tmp_path.iterdir()) == []


def test_the_source_is_not_overwritten(source: Path, text: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(ConfigError, match="the model that is read"):
        quantise_model(options(source, text, source, format="w8a8"))
    assert source.read_bytes() == before


def test_the_file_says_how_it_was_made(source: Path, text: Path, tmp_path: Path) -> None:
    path, report = quantise_model(options(source, text, tmp_path / "m.safetensors", format="w8a8"))
    with closing(open_model(path)) as model:
        file = model.opened.file
        assert isinstance(file, QuantisedFile)
        about = file.description.about
    assert about["source"] == "tiny.gguf" and about["calibration"]["tokens"] > 100
    assert about["report"]["divergence_nats"] == pytest.approx(report.quality.divergence, abs=1e-6)
    assert np.isfinite([line.error for line in report.matrices]).all()


def test_target_kl_belongs_to_mixed_alone(kvern: Command, source: Path) -> None:
    for flags in (("--format", "mixed"), ("--format", "w8a8", "--target-kl", 0.1)):
        done = kvern("quantize", source, *flags)
        assert done.returncode == 1 and "--target-kl" in done.stderr


def test_the_bar_shows_each_stage_and_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (True, None):
        with StageBar(shown=shown) as bar:
            bar("quantising", 1, 2)
            bar("comparing", 3, 3)
        told = capsys.readouterr().err
        assert all((stage in told) == bool(shown) for stage in ("quantising", "comparing", "3/3"))


def test_a_target_must_be_a_loss_that_can_be(kvern: Command, source: Path) -> None:
    done = kvern("quantize", source, "--format", "mixed", "--target-kl", "-1")
    assert done.returncode == 1 and "above zero" in done.stderr
