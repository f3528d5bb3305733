"""What two levels of scales cost and gain on a model: divergence and speed of qoq against others.

    python benchmarks/qoq.py --model smollm2 [--text FILE] [--windows 2] [--calibrated FILE]

Divergence: mean KL in nats per token from the same model with its weights as float32, on the English text that kvern
carries (or FILE), windows of 768 tokens with the first 256 not scored, everything in float32 by the reference back
end. The rows, all 4 bits in groups of 64, rounded to nearest:

    qoq              int8 rows, groups with whole-number scales
    float scales     the same grids with float32 scales and whole zeros, no int8 level
    shared by 4      qoq whose group scales serve four neighbouring rows
    qoq, int8 rows   qoq with its inputs rounded as it is served

``--calibrated`` adds a file made by ``kvern quantize --format qoq``. Speed: all matrices of one decoded token, one
thread, the best of several passes of qoq and w8a8 in turn (skipped where the native library is not built).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvern.assembly.model import LoadedModel, open_model
from kvern.formats.weights import qoq
from kvern.kernels.ops import Weight
from kvern.kernels.reference.device import ReferenceDevice
from kvern.models.network import LayerWeights, Model
from kvern.quantise import measure, texts
from kvern.weights.hub import resolve

Floats = NDArray[np.float32]
Rounding = Callable[[Floats], Floats]
PASSES = 15


def float_scales(values: Floats) -> Floats:
    """uint4 in groups of 64: a float32 step of (max - min) / 15 and a whole zero point."""
    group = values.reshape(len(values), -1, qoq.GROUP)
    low, high = np.minimum(group.min(axis=2), 0), np.maximum(group.max(axis=2), 0)
    step = np.maximum((high - low) / np.float32(qoq.LEVELS), np.float32(1e-12))[..., None]
    zero = np.rint(-low[..., None] / step).clip(0, qoq.LEVELS)
    rounded: Floats = ((np.rint(group / step) + zero).clip(0, qoq.LEVELS) - zero) * step
    return rounded.reshape(values.shape)


def two_levels(values: Floats, rows_together: int = 1) -> Floats:
    """qoq as it is encoded, or with s2 and z shared by ``rows_together`` rows."""
    s1 = qoq.row_scales(values)
    level_1 = np.rint(values / np.where(s1 > 0, s1, np.float32(np.inf))[:, None]).clip(-qoq.LEVEL_1, qoq.LEVEL_1)
    group = level_1.reshape(len(values) // rows_together, rows_together, -1, qoq.GROUP)
    low, high = np.minimum(group.min(axis=(1, 3)), 0), np.maximum(group.max(axis=(1, 3)), 0)
    s2, z = (part[:, None, :, None] for part in qoq.group_parameters(low, high))
    rebuilt = ((np.rint(group / s2) + z).clip(0, qoq.LEVELS) - z) * s2
    return s1[:, None] * rebuilt.reshape(values.shape).astype(np.float32)


def with_weights(model: Model, change: Callable[[Weight], Weight]) -> Model:
    """The model with every matrix changed; a tied output stays the embedding."""

    def layer(weights: LayerWeights) -> LayerWeights:
        found = {field.name: getattr(weights, field.name) for field in fields(LayerWeights)}
        changed: dict[str, Any] = {name: change(w) for name, w in found.items() if isinstance(w, Weight)}
        return replace(weights, **changed)

    embedding = change(model.embedding)
    output = embedding if model.output is model.embedding else change(model.output)
    return replace(model, embedding=embedding, layers=tuple(map(layer, model.layers)), output=output)


def rounded(rounding: Rounding) -> Callable[[Weight], Weight]:
    """A matrix as float32 after ``rounding``."""

    def change(weight: Weight) -> Weight:
        values = np.ascontiguousarray(rounding(weight.decode(0, weight.n)), np.float32)
        return Weight(weight.name, "F32", weight.n, weight.k, values.view(np.uint8).reshape(weight.n, -1))

    return change


def logits_of(model: Model, windows: NDArray[np.int32], activations: str = "exact") -> list[Floats]:
    """Of the scored part of each window: float32 [positions, V]."""
    device = ReferenceDevice(model, "f32", measure.pages_for(windows.shape[1]), activations)
    begin = min(texts.SCORED_FROM, windows.shape[1] // 3)
    return [np.concatenate([part for _, part in measure.logits_of(device, window, begin)]) for window in windows]


def compare(base: list[Floats], found: list[Floats], windows: NDArray[np.int32]) -> measure.Quality:
    sums, positions = np.zeros(4), 0
    for ours, theirs, window in zip(base, found, windows, strict=True):
        targets = window[window.size - len(ours) + 1 :]
        sums += measure.divergences(ours[:-1], theirs[:-1], targets)
        positions += targets.size
    means = (sums / positions).tolist()
    return measure.Quality(positions, means[0], means[1], float(np.exp(means[3])), float(np.exp(means[2])))


def accuracy(source: LoadedModel, windows: NDArray[np.int32], calibrated: Path | None) -> None:
    plain = source.network
    variants: dict[str, tuple[Callable[[], Model], str]] = {
        "qoq": (lambda: with_weights(plain, rounded(two_levels)), "exact"),
        "float scales": (lambda: with_weights(plain, rounded(float_scales)), "exact"),
        "shared by 4": (lambda: with_weights(plain, rounded(lambda values: two_levels(values, 4))), "exact"),
        "qoq, int8 rows": (lambda: plain.in_format("qoq"), "as_cpu"),
    }
    if calibrated is not None:
        file = open_model(calibrated).network
        variants |= {"calibrated": (lambda: file, "exact"), "calibrated, int8 rows": (lambda: file, "as_cpu")}
    base = logits_of(plain, windows)
    found: dict[str, measure.Quality] = {}
    for name, (make, activations) in variants.items():
        found[name] = q = compare(base, logits_of(make(), windows, activations), windows)
        print(
            f"{name:22} KL {q.divergence:.4f}  top-1 {q.agreement:.1%}  perplexity x{q.perplexity_ratio:.3f}"
            f"  ({q.positions} tokens)",
            flush=True,
        )
    print(f"qoq / float scales: {found['qoq'].divergence / found['float scales'].divergence:.2f} (at most 1.1)")


def speed(source: LoadedModel) -> None:
    from kvern import _native
    from kvern.kernels.cpu.packing import pack

    pool = _native.Pool(1)
    packed = {
        name: [pack(weight, pool) for weight in source.network.in_format(name).weights()] for name in ("qoq", "w8a8")
    }
    inputs = {
        weight.k: np.random.default_rng(0).standard_normal((1, weight.k), np.float32) for weight in packed["qoq"]
    }
    best = dict.fromkeys(packed, float("inf"))
    stream = dict.fromkeys(packed, float("inf"))
    for _ in range(PASSES):
        for name, weights in packed.items():
            begin = time.perf_counter()
            for weight in weights:
                _native.repeat_linear(inputs[weight.k], weight, 1, None, pool)
            best[name] = min(best[name], time.perf_counter() - begin)
            begin = time.perf_counter()
            for weight in weights:
                _native.read_weight(weight, 1)
            stream[name] = min(stream[name], time.perf_counter() - begin)
    for name, weights in packed.items():
        size = sum(weight.nbytes for weight in weights)
        print(
            f"{name:5} {best[name] * 1e3:6.2f} ms a token, {size / 1e6:.1f} MB, "
            f"{size / best[name] / 1e9:.1f} GB/s, {stream[name] / best[name]:.2f} of plain reading"
        )
    print(f"qoq / w8a8: {best['qoq'] / best['w8a8']:.2f} of the time (at most 0.6) on {_native.isa()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a catalogue name or a model file")
    parser.add_argument("--text", type=Path, help="English text to measure divergence on")
    parser.add_argument("--windows", type=int, default=texts.HELD_OUT_WINDOWS, help="of 768 tokens; 0: speed alone")
    parser.add_argument("--calibrated", type=Path, help="a file made by kvern quantize --format qoq")
    options = parser.parse_args()
    source = open_model(resolve(options.model))
    if options.windows:
        text = texts.held_out_text() if options.text is None else options.text.read_text(encoding="utf-8")
        length = texts.HELD_OUT_WINDOW
        accuracy(source, texts.windows(source.tokenizer(), text, length, options.windows), options.calibrated)
    try:
        speed(source)
    except ImportError as error:
        print(f"speed not measured: {error}")


if __name__ == "__main__":
    main()
