"""``kvern quantize``: from a model to a quantised file with a report beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from kvern import __version__
from kvern.assembly.capable import backend_for
from kvern.assembly.device_options import DeviceOptions
from kvern.assembly.model import LoadedModel, make_device, open_model
from kvern.assembly.recipes import recipe_of
from kvern.core.errors import ConfigError, ModelFileError
from kvern.formats import weights as weight_formats
from kvern.kernels.ops import Vector
from kvern.models.canonical import matrices, spec_as_json, vectors
from kvern.quantise import measure, texts
from kvern.quantise.layerwise import QuantisedMatrix, Result, quantise
from kvern.quantise.recipe import Method, Recipe
from kvern.quantise.report import MatrixLine, Report, as_html
from kvern.runtime.device import Device
from kvern.weights.hub import resolve
from kvern.weights.quantised_file import DOCUMENT_PREFIX, HEADER_SUFFIX, KEY, VERSION, Description, MatrixEntry
from kvern.weights.safetensors_writer import SafetensorsWriter
from kvern.weights.text_side import source_of

MAX_TEXT_BYTES = 64 << 20
_ABOUT_BYTES = 1 << 16
Progress = Callable[[str, int, int], None]  # what is being done, done, of


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantiseOptions:
    """``calibration`` and ``held_out`` are text files; without the first the model writes its own text, without the
    second kvern's is used. ``base`` is the weight format of the unquantised model in the comparison. ``backend``
    None: the cpu one where it has kernels for a model's formats, else the reference. ``report`` False: nothing is
    measured."""

    model: str
    format: str
    out: Path | None = None
    calibration: Path | None = None
    calibration_tokens: int = 8192
    held_out: Path | None = None
    threads: int | None = None
    seed: int = 0
    method: Method | None = None
    ends: str | None = None
    base: str = "f32"
    backend: str | None = None
    report: bool = True

    @property
    def cores(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be written where. ``about`` goes into the file, ``search`` into the report alone."""

    source: LoadedModel
    results: Iterable[Result]
    out: Path
    about: dict[str, Any]
    search: dict[str, Any] = field(default_factory=dict)


def quantise_model(options: QuantiseOptions, progress: Progress = silent) -> tuple[Path, Report | None]:
    """Write the quantised file and its report; where they are, and what was found.

    Raises ConfigError, ModelFileError; no file is left behind then.
    """
    recipe = recipe_of(options.format, options.method, options.ends)
    with closing(open_model(resolve(options.model))) as source:
        check_shapes(source, recipe)
        out = output_path(source, options)
        tokens = calibration_windows(source, options, progress)
        results = quantise(source.network, recipe, tokens, partial_progress(progress, "quantising"))
        job = Job(source, results, out, about(source, recipe, tokens, options))
        return write_and_measure(job, options, progress)


def write_and_measure(job: Job, options: QuantiseOptions, progress: Progress) -> tuple[Path, Report | None]:
    """Write the file of ``job``, measure it while it has only a temporary name, give it its own."""
    source = job.source
    documents = source_of(source.opened.file).documents(source.opened.file)
    with SafetensorsWriter(job.out, _names(source, documents), _text_bytes(source, job.about)) as writer:
        lines, entries = _write_tensors(writer, job.results)
        for name, data in documents.items():
            writer.add(DOCUMENT_PREFIX + name, "U8", (len(data),), [np.frombuffer(data, np.uint8)])
        description = Description(VERSION, spec_as_json(source.spec), entries, list(documents), job.about)
        writer.finish({KEY: msgspec.json.encode(description).decode()})
        report = None
        if options.report:
            report = _measure(source, writer.temporary, tuple(lines), options, progress)
            report = replace(report, recipe=job.about["recipe"], search=job.search)
            job.about["report"] = report.summary()
            writer.finish({KEY: msgspec.json.encode(description).decode()})
        writer.publish()
    if report is not None:
        _write_report(job.out, report)
    return job.out, report


def output_path(source: LoadedModel, options: QuantiseOptions) -> Path:
    """Raises ConfigError when it is the source itself or its folder is not there."""
    out = options.out or Path(f"{source.path.stem}.{options.format}.safetensors")
    if out.exists() and out.samefile(source.opened.file.path):
        raise ConfigError(f"{out}: is the model that is read; choose another --output")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.absolute().parent}")
    return out


def check_shapes(source: LoadedModel, recipe: Recipe) -> None:
    """Raise ConfigError, naming the matrix, when one does not divide into the blocks of its format."""
    for name, weight in matrices(source.network):
        form = weight_formats.get(recipe.of(name).format)
        if weight.k % form.block:
            raise ConfigError(
                f"format {form.name} keeps rows in blocks of {form.block}; {name} has rows of {weight.k}"
            )


def read_text(path: Path) -> str:
    """A UTF-8 text file. Raises ConfigError when it cannot be read or is over 64 MiB."""
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise ConfigError(f"{path}: is over {MAX_TEXT_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def calibration_windows(source: LoadedModel, options: QuantiseOptions, progress: Progress) -> NDArray[np.int32]:
    """int32 [texts, length]: from the text file given, else text that the model writes."""
    tokenizer, wanted = source.tokenizer(), options.calibration_tokens
    window = min(texts.WINDOW, source.spec.max_context)
    if options.calibration is not None:
        return texts.windows(tokenizer, read_text(options.calibration), window, max(1, wanted // window))
    shape = max(1, wanted // window), window
    chosen = DeviceOptions(
        backend=options.backend or backend_for(source.network),
        pages=shape[0] * measure.pages_for(window),
        threads=options.cores,
        max_rows=max(shape[0], 16),
    )
    device = make_device(source, chosen)
    return texts.written_by(device, tokenizer, shape, options.seed, partial_progress(progress, "writing text"))


def partial_progress(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)


def _write_tensors(
    writer: SafetensorsWriter, results: Iterable[Result]
) -> tuple[list[MatrixLine], dict[str, MatrixEntry]]:
    lines: list[MatrixLine] = []
    entries: dict[str, MatrixEntry] = {}
    for found in results:
        if isinstance(found, Vector):
            writer.add(found.name, "F32", (found.data.size,), [found.data.astype("<f4")])
            continue
        weight = found.weight
        writer.add(found.name, "U8", weight.raw.shape, [weight.raw])
        if weight.header.size:
            writer.add(found.name + HEADER_SUFFIX, "U8", (weight.header.size,), [weight.header])
        entries[found.name] = MatrixEntry(weight.format, weight.n, weight.k, weight.activation)
        lines.append(_line(found))
    return lines, entries


def _line(found: QuantisedMatrix) -> MatrixLine:
    weight = found.weight
    return MatrixLine(
        found.name, weight.format, weight.n * weight.k, weight.raw.nbytes + weight.header.nbytes, found.error
    )


def _measure(
    source: LoadedModel, path: Path, lines: tuple[MatrixLine, ...], options: QuantiseOptions, progress: Progress
) -> Report:
    tokenizer = source.tokenizer()
    length = min(texts.HELD_OUT_WINDOW, source.spec.max_context)
    text = texts.held_out_text() if options.held_out is None else read_text(options.held_out)
    windows = texts.windows(tokenizer, text, length, texts.HELD_OUT_WINDOWS)
    scored = min(texts.SCORED_FROM, windows.shape[1] // 3)
    base = _device(source, options, options.base, windows.shape[1])
    with closing(open_model(path)) as quantised:
        device = _device(quantised, options, "file", windows.shape[1])
        backend = options.backend or backend_for(quantised.network)
        notes = () if backend == "cpu" else ("measured on the reference back end",)
        quality = measure.compare(base, device, windows, scored, partial_progress(progress, "comparing"))
        del base
        speed = base_speed = None
        if not notes:
            speed = measure.speed(device, windows[0][:512])
            base_speed = measure.speed(_device(source, options, "file", windows.shape[1]), windows[0][:512])
    return Report(
        source=source.path.name,
        base=f"the {options.base} weights of {source.path.name}",
        recipe={},
        matrices=lines,
        file_bytes=path.stat().st_size,
        source_bytes=source.file_bytes,
        quality=quality,
        speed=speed,
        base_speed=base_speed,
        notes=notes,
    )


def _device(model: LoadedModel, options: QuantiseOptions, weight_format: str, tokens: int) -> Device:
    chosen = DeviceOptions(
        backend=options.backend or backend_for(model.network.in_format(weight_format)),
        weight_format=weight_format,
        pages=measure.pages_for(tokens + 64),
        threads=options.cores,
        max_rows=max(512, texts.SCORED_FROM),
        activations="as_cpu",
    )
    return make_device(model, chosen)


def about(source: LoadedModel, recipe: Recipe, tokens: NDArray[np.int32], options: QuantiseOptions) -> dict[str, Any]:
    """What the file says of where it came from and how it was made."""
    calibration = "text the model wrote" if options.calibration is None else options.calibration.name
    return {
        "made_by": f"kvern {__version__}",
        "source": source.path.name,
        "source_formats": list(source.weight_formats),
        "calibration": {"text": calibration, "tokens": int(tokens.size), "seed": options.seed},
        "recipe": {
            "format": options.format,
            "method": recipe.default.method,
            "smooth_inputs": recipe.smooth_inputs,
            "smooth_attention": recipe.smooth_attention,
        },
    }


def _names(source: LoadedModel, documents: dict[str, bytes]) -> list[str]:
    found = [name for name, _ in matrices(source.network)]
    return [
        *found,
        *(name + HEADER_SUFFIX for name in found),
        *(name for name, _ in vectors(source.network)),
        *(DOCUMENT_PREFIX + name for name in documents),
    ]


def _text_bytes(source: LoadedModel, about: dict[str, Any]) -> int:
    """An upper bound of the description's JSON, inside the JSON of the header (which escapes its quotes)."""
    spec = len(msgspec.json.encode(spec_as_json(source.spec)))
    entries = sum(len(name) + 200 for name, _ in matrices(source.network))
    return 2 * (spec + entries + len(json.dumps(about))) + _ABOUT_BYTES


def report_paths(out: Path) -> tuple[Path, Path]:
    """(JSON, HTML) of the report of a quantised file."""
    stem = out.name.removesuffix(".safetensors")
    return out.with_name(f"{stem}.report.json"), out.with_name(f"{stem}.report.html")


def _write_report(out: Path, report: Report) -> None:
    as_json, page = report_paths(out)
    try:
        as_json.write_text(json.dumps(report.as_json(), indent=1), encoding="utf-8")
        page.write_text(as_html(report), encoding="utf-8")
    except OSError as error:
        raise ModelFileError(f"{as_json}: the report cannot be written ({error.strerror})") from error
