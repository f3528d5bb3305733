"""``kvern quantize --format mixed --target-kl X``: each matrix as narrow as the loss allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvern import _native
from kvern.assembly.model import LoadedModel, open_model
from kvern.assembly.quantiser import (
    Job,
    Progress,
    QuantiseOptions,
    about,
    calibration_windows,
    check_shapes,
    output_path,
    partial_progress,
    silent,
    write_and_measure,
)
from kvern.formats import weights as weight_formats
from kvern.kernels.cpu.device import CpuDevice, CpuLimits
from kvern.kernels.cpu.packing import pack
from kvern.kernels.ops import Vector, Weight
from kvern.models.canonical import EMBEDDING, OUTPUT, matrices, with_matrices
from kvern.models.network import Model
from kvern.quantise import measure, search
from kvern.quantise.layerwise import QuantisedMatrix, Result, quantise
from kvern.quantise.recipe import Choice, Recipe
from kvern.quantise.report import Report
from kvern.quantise.search import Pair
from kvern.runtime.device import StepBatch
from kvern.weights.hub import resolve

# From the widest to the narrowest; the embedding and the output take the second.
LADDER = ("BF16", "Q8_0", "Q4_0")
SEARCH_TOKENS, SEARCH_SCORED_FROM = 256, 64
Loss = Callable[[Sequence[int]], float]


def mixed_recipe() -> Recipe:
    """Everything at the narrowest, but for the ends; its results are the candidates of the last width."""
    end = Choice(LADDER[1])
    return Recipe(Choice(LADDER[-1]), choices={EMBEDDING: end, OUTPUT: end})


@dataclass(frozen=True, slots=True)
class Candidates:
    """``weights[width][i]`` is matrix ``names[i]`` at that width of the ladder; ``hessian[i]`` is its error at the
    narrowest by second moments, ``tr(E H E^T)`` over its weights. ``ends`` are as they stay."""

    names: tuple[str, ...]
    elements: tuple[int, ...]
    weights: tuple[tuple[Weight, ...], ...]
    hessian: tuple[float, ...]
    ends: dict[str, Weight]
    vectors: tuple[Vector, ...]

    @property
    def bits(self) -> tuple[float, ...]:
        return tuple(weight_formats.get(name).bits_per_weight for name in LADDER)

    def network(self, model: Model, chosen: Sequence[int]) -> Model:
        found = {name: self.weights[width][i] for i, (name, width) in enumerate(zip(self.names, chosen, strict=True))}
        return with_matrices(model, found | self.ends)


def candidates(model: Model, tokens: NDArray[np.int32], progress: Progress) -> Candidates:
    """Every matrix at every width: the narrowest by compensated rounding, the others plainly."""
    narrow: dict[str, QuantisedMatrix] = {}
    kept: list[Vector] = []
    for found in quantise(model, mixed_recipe(), tokens, partial_progress(progress, "quantising")):
        if isinstance(found, Vector):
            kept.append(found)
        else:
            narrow[found.name] = found
    ends = {name: narrow.pop(name).weight for name in (EMBEDDING, OUTPUT) if name in narrow}
    sources = {name: weight for name, weight in matrices(model) if name in narrow}
    columns = [tuple(_plain(sources[name], form) for name in sources) for form in LADDER[:-1]]
    columns.append(tuple(narrow[name].weight for name in sources))
    return Candidates(
        names=tuple(sources),
        elements=tuple(weight.n * weight.k for weight in sources.values()),
        weights=tuple(columns),
        hessian=tuple(narrow[name].loss / (weight.n * weight.k) for name, weight in sources.items()),
        ends=ends,
        vectors=tuple(kept),
    )


def _plain(weight: Weight, name: str) -> Weight:
    form = weight_formats.get(name)
    header, rows = form.encode_matrix(weight.decode(0, weight.n))
    return Weight(weight.name, form.name, weight.n, weight.k, rows, header=header)


class SwapLoss:
    """Mean KL per token of a choice of widths against the widest everywhere, on one text, by the cpu back end.

    Packed matrices are kept, so that a new choice costs little more than its forward pass; that begins at the first
    unit where the choice differs from the widest. ``evaluations`` counts them.
    """

    def __init__(self, model: Model, found: Candidates, tokens: NDArray[np.int32], threads: int) -> None:
        self._model, self._found, self._tokens = model, found, tokens
        self._pool = _native.Pool(threads)
        self._packed: dict[int, tuple[Weight, _native.PackedWeight]] = {}
        self.evaluations = 0
        widest = self._device([0] * len(found.names))
        self._hidden = [self._units(widest, np.zeros((tokens.size, model.hidden_size), np.float32), 0, 1)[0]]
        for unit in range(1, widest.units):
            self._hidden.append(self._units(widest, self._hidden[-1], unit, unit + 1)[0])
        logits = self._units(widest, self._hidden[-2], widest.units - 1, widest.units)[1]
        self._base = measure.log_softmax(logits).astype(np.float32)

    def __call__(self, chosen: Sequence[int]) -> float:
        self.evaluations += 1
        changed = [self._unit_of(i) for i, width in enumerate(chosen) if width]
        if not changed:
            return 0.0
        device, first = self._device(chosen), min(changed)
        before = self._hidden[first - 1] if first else np.zeros_like(self._hidden[0])
        logits = self._units(device, before, first, device.units)[1]
        total = 0.0
        for p, row in zip(self._base, logits, strict=True):
            q = measure.log_softmax(row[None])[0]
            total += float((np.exp(p) * (p - q)).sum())
        return total / len(logits)

    def _unit_of(self, index: int) -> int:
        _, layer, field = self._found.names[index].split(".")
        return 2 * int(layer) + (field in ("gate", "up", "down"))

    def _device(self, chosen: Sequence[int]) -> CpuDevice:
        limits = CpuLimits(pages=measure.pages_for(self._tokens.size), max_rows=self._tokens.size)
        return CpuDevice(self._found.network(self._model, chosen), "bf16", limits, self._pool, self._pack)

    def _pack(self, weight: Weight, pool: _native.Pool) -> _native.PackedWeight:
        if id(weight) not in self._packed:
            self._packed[id(weight)] = weight, pack(weight, pool)
        return self._packed[id(weight)][1]

    def _units(
        self, device: CpuDevice, hidden: NDArray[np.float32], begin: int, end: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Units [begin, end) over the whole text: (rows that leave, logits of the scored rows where it ends)."""
        rows, last = self._tokens.size, end == device.units
        wanted = np.arange(SEARCH_SCORED_FROM if rows > 2 * SEARCH_SCORED_FROM else 0, rows)
        batch = StepBatch(
            tokens=self._tokens,
            positions=np.arange(rows, dtype=np.int32),
            row_begin=np.array([0, rows], np.int32),
            unit_begin=np.array([begin], np.int32),
            unit_end=np.array([end], np.int32),
            block_table=np.arange(device.pages, dtype=np.int32)[None],
            hidden=hidden.copy(),
            logit_rows=(wanted if last else wanted[:0]).astype(np.int32),
            stop=np.zeros(1, np.uint8),
        )
        return batch.hidden, device.step(batch).logits


def sensitivities(
    loss: Loss, count: int, pairs: Sequence[Pair], progress: Progress
) -> tuple[list[float], dict[Pair, float]]:
    """The loss with each matrix alone at the narrowest, and with each pair; see ``search.interactions``."""
    narrowest, total = len(LADDER) - 1, count + len(pairs)

    def of(indices: Sequence[int], done: int) -> float:
        progress("sensitivity", done, total)
        return loss([narrowest if i in indices else 0 for i in range(count)])

    singles = [of((i,), i + 1) for i in range(count)]
    doubles = {pair: of(pair, count + i + 1) for i, pair in enumerate(pairs)}
    return singles, search.interactions(singles, doubles)


def neighbours(count: int) -> list[Pair]:
    """Pairs that interact most: each matrix with the next in the order of use."""
    return [(i, i + 1) for i in range(count - 1)]


def quantise_mixed(
    options: QuantiseOptions, target: float, progress: Progress = silent
) -> tuple[Path, Report | None]:
    """Search, write and measure; as ``quantiser.quantise_model``."""
    with closing(open_model(resolve(options.model))) as source:
        check_shapes(source, mixed_recipe())
        out = output_path(source, options)
        tokens = calibration_windows(source, options, progress)
        found = candidates(source.network, tokens, progress)
        text = np.ascontiguousarray(tokens[0][:SEARCH_TOKENS])
        loss = SwapLoss(source.network, found, text, options.cores)
        singles, between = sensitivities(loss, len(found.names), neighbours(len(found.names)), progress)
        scores = search.augmented(singles, between)
        order = search.ordered(scores, found.elements)
        chosen = search.assign(order, len(LADDER), target, loss)
        bits = search.stored_bits(chosen, found.elements, found.bits)
        notes = {
            "target_nats": target,
            "widths": {name: LADDER[width] for name, width in zip(found.names, chosen, strict=True)},
            "scores": dict(zip(found.names, scores, strict=True)),
            "evaluations": loss.evaluations,
            "bits_per_weight_of_linears": bits,
        }
        job = Job(source, results(source, found, chosen), out, about(source, mixed_recipe(), tokens, options), notes)
        return write_and_measure(job, options, progress)


def results(source: LoadedModel, found: Candidates, chosen: Sequence[int]) -> Iterator[Result]:
    """What is written: each matrix at its width, the ends, and the vectors."""
    yield from found.vectors
    for index, (name, width) in enumerate(zip(found.names, chosen, strict=True)):
        yield _result(source.network, name, found.weights[width][index])
    for name, weight in found.ends.items():
        yield _result(source.network, name, weight)


def _result(model: Model, name: str, weight: Weight) -> QuantisedMatrix:
    """With the error of the weights themselves, relative to their square."""
    exact = dict(matrices(model))[name].decode(0, weight.n)
    missed = float(np.square(exact - weight.decode(0, weight.n)).sum())
    return QuantisedMatrix(name, weight, missed / max(float(np.square(exact).sum()), 1e-30), missed)
