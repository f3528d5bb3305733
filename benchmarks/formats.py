"""What weights and activations of few bits cost and give: the checks of systems 3 to 6 of the specification.

    python benchmarks/formats.py widths crossover            # speed; seconds
    python benchmarks/formats.py flexq comet --model smollm2 --traces ../shared/traces   # quality; minutes

widths     one row times a matrix of 1 to 8 bits a weight: its time over that of reading the same bytes (Tilus: at
           most 1.15 from 4 bits on; below, unpacking is the limit)
crossover  n-bit weights times m-bit inputs by bit planes, over the same weights with int8 inputs (bipolar-INT:
           planes win only for small n * m)
flexq      6-bit inputs everywhere against 8 bits before the down projection, with float and with 6-bit weights
comet      4-bit inputs; 2 of every 9 groups at 8 bits, without and with the calibrated permutation; 8-bit inputs

Speeds are the least of many repetitions on one thread, and ratios are taken in the same run. Quality is measured on
WikiText-2 windows of 512 tokens whose second half is scored, against float inputs and the file's weights in float32;
only the matrices of the layers have their inputs rounded. Maxima are calibrated on other text of the same file.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvern import _native
from kvern.assembly.model import LoadedModel, open_model
from kvern.formats import activations, mixed_header, weights
from kvern.formats.bipolar import PLANE_PRODUCTS
from kvern.kernels.ops import Weight
from kvern.models.network import Model
from kvern.quantise.measure import divergences
from kvern.quantise.text_ops import TextOps
from kvern.weights.hub import resolve

WINDOW, SCORED_FROM = 512, 256
WIDE_OF, OF_GROUPS = 2, 9  # groups that keep 8 bits: 2 of the 9 that 576 inputs make
Rows = NDArray[np.float32]
Header = NDArray[np.uint8]


def least_seconds(work: Callable[[], object], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best


def bipolar_weight(bits: int, outputs: int, inputs: int) -> _native.PackedWeight:
    """Random codes, small scales."""
    draw, form = np.random.default_rng(bits), weights.get(f"BIPOLAR{bits}")
    raw = draw.integers(0, 256, (outputs * inputs // 64, form.block_bytes), dtype=np.uint8)
    raw[:, :2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    return _native.PackedWeight.from_blocks(form.name, raw.reshape(outputs, -1), outputs, inputs)


def widths(options: argparse.Namespace) -> Iterator[str]:
    """One row: time at b bits over the time to read the same bytes."""
    pool, x = _native.Pool(1), np.ones((1, options.inputs), np.float32)
    yield f"| {_native.isa()}, {options.outputs} x {options.inputs} | MB | ms | time / read | GB/s | weights/ns |"
    yield "|---|---|---|---|---|---|"
    for bits in range(1, 9):
        weight = bipolar_weight(bits, options.outputs, options.inputs)

        def product(weight: _native.PackedWeight = weight) -> None:
            _native.repeat_linear(x, weight, 1, None, pool)

        def read(weight: _native.PackedWeight = weight) -> None:
            _native.read_weight(weight, 1)

        pairs = [(least_seconds(product, 3), least_seconds(read, 3)) for _ in range(options.repeats)]
        ours, reading = (min(column) for column in zip(*pairs, strict=True))
        count = options.outputs * options.inputs
        yield (f"| {bits} bits | {weight.nbytes / 1e6:.2f} | {1e3 * ours:.3f} | {ours / reading:.2f} | "
               f"{weight.nbytes / ours / 1e9:.1f} | {count / ours / 1e9:.1f} |")  # fmt: skip


def crossover(options: argparse.Namespace) -> Iterator[str]:
    """Time by bit planes over that of the same weights with int8 inputs."""
    pool, planes = _native.Pool(1), sorted(PLANE_PRODUCTS, key=lambda name: activations.get(name).bits)
    for rows in (1, 4):
        x = np.random.default_rng(0).standard_normal((rows, options.inputs), dtype=np.float32)
        titles = " | ".join(f"m = {activations.get(name).bits:.0f}" for name in planes)
        yield f"| {_native.isa()}, {rows} rows | int8 ms | {titles} |"
        yield "|---" * (2 + len(planes)) + "|"
        for bits in range(1, 5):
            weight = bipolar_weight(bits, options.outputs, options.inputs)
            found = dict.fromkeys(("int8 group 64", *planes), float("inf"))
            for _ in range(options.repeats):
                for form in found:
                    once = least_seconds(
                        lambda w=weight, f=form, x=x: _native.repeat_linear(x, w, 1, None, pool, f), 1
                    )
                    found[form] = min(found[form], once)
            whole = found.pop("int8 group 64")
            ratios = " | ".join(f"{seconds / whole:.2f}" for seconds in found.values())
            yield f"| n = {bits} | {1e3 * whole:.3f} | {ratios} |"
        yield ""


@dataclass
class Rounded:
    """Sees every product of a forward pass: inputs in the form that ``form`` names for a matrix, weights in the
    format ``weight_format`` (None: as the file has them). Keeps maxima of the inputs of each matrix."""

    form: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, Header] = field(default_factory=dict)
    weight_format: str | None = None
    maxima: dict[str, Rows] | None = None
    decoded: dict[tuple[str, str | None], Rows] = field(default_factory=dict)

    def product(self, x: Rows, weight: Weight) -> Rows:
        if self.maxima is not None:
            self.maxima[weight.name] = np.abs(x).max(axis=0)
        seen, name = x, weight.name
        if name in self.form:
            seen = activations.get(self.form[name]).rounded(x, self.headers.get(name, np.empty(0, np.uint8)))
        return seen @ self._matrix(weight).T

    def _matrix(self, weight: Weight) -> Rows:
        name = self.weight_format if weight.name in self.form else None
        key = weight.name, name
        if key not in self.decoded:
            values = weight.decode(0, weight.n)
            if name is not None:
                form = weights.get(name)
                values = form.decode(form.encode(values), weight.n, weight.k)
            self.decoded[key] = values
        return self.decoded[key]

    def keys(self, layer: int, keys: Rows) -> None:
        """Not looked at."""


def logits(network: Model, tokens: NDArray[np.int32], seen: Rounded) -> Rows:
    """Of the scored positions: float32 [rows, V]."""
    ops = TextOps(tokens[None], seen)
    x = network.embed(ops)
    for unit in range(2 * len(network.layers)):
        x = network.unit(ops, unit, x)
    return network.head(ops, x[SCORED_FROM:-1])


class Quality:
    """Divergence from float inputs and the file's weights, over the same windows for every variant."""

    def __init__(self, model: LoadedModel, traces: Path, count: int) -> None:
        with gzip.open(traces / "corpora" / "wikitext2_valid.txt.gz", "rt", encoding="utf-8") as file:
            tokens = np.array(model.tokenizer().encode(file.read()[: (count + 2) * WINDOW * 8]), np.int32)
        self.network = model.network
        self.layer_weights = [w for layer in self.network.layers for w in _matrices(layer)]
        self._decoded: dict[tuple[str, str | None], Rows] = {}
        self._windows = tokens[: count * WINDOW].reshape(count, WINDOW)
        self._calibration = tokens[count * WINDOW :][:WINDOW]
        self._base = [logits(self.network, window, Rounded(decoded=self._decoded)) for window in self._windows]

    def maxima(self) -> dict[str, Rows]:
        """Largest magnitudes of each input of each matrix on the calibration text."""
        found: dict[str, Rows] = {}
        logits(self.network, self._calibration, Rounded(maxima=found, decoded=self._decoded))
        return found

    def of(self, form: Callable[[Weight], str], weight_format: str | None = None,
           headers: Mapping[str, Header] | None = None) -> float:  # fmt: skip
        """Mean KL in nats."""
        forms = {weight.name: form(weight) for weight in self.layer_weights}
        seen = Rounded(forms, headers or {}, weight_format, decoded=self._decoded)
        total, positions = 0.0, 0
        for window, base in zip(self._windows, self._base, strict=True):
            total += divergences(base, logits(self.network, window, seen), window[SCORED_FROM + 1 :])[0]
            positions += len(base)
        for key in [key for key in self._decoded if key[1] is not None]:
            del self._decoded[key]
        return total / positions


def _matrices(layer: object) -> list[Weight]:
    return [getattr(layer, name) for name in ("query", "key", "value", "attention_output", "gate", "up", "down")]


def flexq(quality: Quality) -> Iterator[str]:
    down = {id(layer.down) for layer in quality.network.layers}
    yield "| weights | inputs | mean KL (nats) |"
    yield "|---|---|---|"
    cases: list[tuple[str | None, str, Callable[[Weight], str]]] = [
        (None, "int6 group 64", lambda w: "int6 group 64"),
        (None, "int6, down int8", lambda w: "int8 group 64" if id(w) in down else "int6 group 64"),
        (None, "int8 group 64", lambda w: "int8 group 64"),
        ("W6", "int6 group 64", lambda w: "int6 group 64"),
        ("W6", "int6, down int8", lambda w: "int8 group 64" if id(w) in down else "int6 group 64"),
        ("W8A8", "int8 row", lambda w: "int8 row"),
    ]
    for weight_format, name, form in cases:
        yield f"| {weight_format or 'float'} | {name} | {quality.of(form, weight_format):.4f} |"


def comet(quality: Quality) -> Iterator[str]:
    maxima = quality.maxima()
    plain: dict[str, Header] = {}
    some: dict[str, Header] = {}
    permuted: dict[str, Header] = {}
    for weight in quality.layer_weights:
        groups = weight.k // 64
        wide = max(1, round(groups * WIDE_OF / OF_GROUPS))
        largest = maxima[weight.name].reshape(groups, 64).max(axis=1)
        plain[weight.name] = mixed_header.plain_header(weight.k)
        some[weight.name] = mixed_header.header_of(np.arange(weight.k), largest >= np.sort(largest)[-wide])
        permuted[weight.name] = mixed_header.calibrated_header(maxima[weight.name], wide)
    yield "| inputs | mean KL (nats) |"
    yield "|---|---|"
    for name, headers in (("int4 everywhere", plain), ("2 of 9 groups int8", some),
                          ("2 of 9 groups int8, permuted", permuted)):  # fmt: skip
        yield f"| {name} | {quality.of(lambda w: 'mixed 4/8', None, headers):.4f} |"
    yield f"| int8 everywhere | {quality.of(lambda w: 'int8 group 64'):.4f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("widths", "crossover", "flexq", "comet"))
    parser.add_argument("--outputs", type=int, default=1536)
    parser.add_argument("--inputs", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--model", default="smollm2", help="a catalogue name or a GGUF file")
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"))
    parser.add_argument("--windows", type=int, default=1)
    options = parser.parse_args()
    quality: Quality | None = None
    for what in options.what:
        if what in ("widths", "crossover"):
            lines = {"widths": widths, "crossover": crossover}[what](options)
        else:
            quality = quality or Quality(open_model(resolve(options.model)), options.traces, options.windows)
            lines = {"flexq": flexq, "comet": comet}[what](quality)
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()
