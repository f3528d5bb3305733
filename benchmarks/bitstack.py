"""What bitstack matrices are worth at every number of resident blocks, and what activation scaling adds.

    python benchmarks/bitstack.py --model smollm2 [--blocks 4] [--rank 16] [--layers 30]

Spec: kv-attention-quantization.md, system 8. The matrices of the first ``--layers`` layers are decomposed twice: as
they are, and with columns scaled by the root mean square of their inputs on calibration text. Other matrices stay as
in the file; inputs are float32 everywhere. Perplexity and KL to the model as it is in the file, on held-out text that
the calibration has not seen.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvern import _native
from kvern.assembly.model import open_model
from kvern.formats.weights import bitstack
from kvern.kernels.cpu.device import CpuDevice, CpuLimits
from kvern.kernels.ops import Weight
from kvern.models.network import Model
from kvern.quantise import texts
from kvern.quantise.measure import compare, pages_for
from kvern.quantise.text_ops import Rows, TextOps
from kvern.weights.hub import resolve

MATRICES = ("query", "key", "value", "attention_output", "gate", "up", "down")


@dataclass(slots=True)
class InputSizes:
    """Root mean square of the inputs of every matrix, by its name."""

    found: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def product(self, x: Rows, weight: Weight) -> Rows:
        self.found[weight.name] = np.sqrt(np.mean(np.square(x), axis=0))
        return x @ weight.decode(0, weight.n).T

    def keys(self, layer: int, keys: Rows) -> None:
        del layer, keys  # nothing here depends on them


def with_float_inputs(model: Model) -> Model:
    """No inputs are rounded, so that what differs is the weights alone."""

    def served(weight: Weight) -> Weight:
        return replace(weight, activation="float32")

    layers = []
    for layer in model.layers:
        changes: dict[str, Any] = {name: served(getattr(layer, name)) for name in MATRICES}
        layers.append(replace(layer, **changes))
    embedding = served(model.embedding)
    output = embedding if model.output is model.embedding else served(model.output)
    return replace(model, layers=tuple(layers), embedding=embedding, output=output)


def input_sizes(model: Model, tokens: NDArray[np.int32], layers: int) -> dict[str, NDArray[np.float32]]:
    sizes = InputSizes()
    ops = TextOps(tokens, sizes)
    x = ops.embed(model.embedding, model.spec.embed_scale)
    for unit in range(2 * layers):
        x = model.unit(ops, unit, x)
    return sizes.found


def stacked(model: Model, options: argparse.Namespace, sizes: dict[str, NDArray[np.float32]]) -> Model:
    """``model`` with the matrices of its first layers in bitstack; without ``sizes``, unscaled."""

    def converted(weight: Weight) -> Weight:
        values = weight.decode(0, weight.n)
        header, raw = bitstack.stacked(values, options.blocks, options.rank, sizes.get(weight.name))
        return Weight(weight.name, bitstack.NAME, weight.n, weight.k, raw, header=header)

    begin = time.perf_counter()
    layers = []
    for layer in model.layers[: options.layers]:
        changes: dict[str, Any] = {name: converted(getattr(layer, name)) for name in MATRICES}
        layers.append(replace(layer, **changes))
    print(f"{'scaled' if sizes else 'plain'}: encoded in {time.perf_counter() - begin:.0f} s", flush=True)
    return replace(model, layers=(*layers, *model.layers[options.layers :]))


def report(name: str, device: CpuDevice, base: CpuDevice, windows: NDArray[np.int32], weights: int) -> None:
    """Whole levels, and half-way between the last two (where the order within a level shows)."""
    device.set_weight_budget(None)
    whole, blocks = device.weight_bytes, max(device.weight_blocks)
    stacks = device.block_stacks()
    level = sum(stack.block_bytes for stack in stacks)
    budgets = [whole - missing * level for missing in range(blocks - 1, -1, -1)]
    if blocks > 1:
        budgets.insert(-1, whole - level // 2)
    for budget in budgets:
        device.set_weight_budget(budget)
        counts = device.weight_blocks
        used = sum(n * stack.block_bytes for n, stack in zip(counts, stacks, strict=True))
        begin = time.perf_counter()
        quality = compare(base, device, windows, windows.shape[1] // 3)
        print(
            f"{name:6} blocks {min(counts)}..{max(counts)}  {8 * used / weights:5.2f} bits/weight  "
            f"{device.weight_bytes / 1e6:7.2f} MB  perplexity {quality.perplexity:9.2f} "
            f"(file {quality.base_perplexity:.2f})  KL {quality.divergence:6.3f}  "
            f"same first {quality.agreement:.3f}  {time.perf_counter() - begin:.0f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    opened = open_model(resolve(options.model))
    model = with_float_inputs(opened.network)
    text, tokenizer = texts.held_out_text(), opened.tokenizer()
    cut = len(text) * 2 // 3
    windows = texts.windows(tokenizer, text[:cut], options.length, options.windows)
    sizes = input_sizes(model, texts.windows(tokenizer, text[cut:], options.length, 2), options.layers)
    pool, limits = _native.Pool(options.threads), CpuLimits(pages=pages_for(options.length), max_rows=options.length)
    weights = sum(
        getattr(layer, name).n * getattr(layer, name).k
        for layer in model.layers[: options.layers]
        for name in MATRICES
    )
    base = CpuDevice(model, "bf16", limits, pool)
    for name, chosen in (("plain", {}), ("scaled", sizes)):
        device = CpuDevice(stacked(model, options, chosen), "bf16", limits, pool)
        report(name, device, base, windows, weights)


if __name__ == "__main__":
    main()
