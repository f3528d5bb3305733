"""What each KV format costs in quality: divergence, first tokens and perplexity against the bf16 KV of the same run.

    python benchmarks/kv_quality.py --model smollm2 --traces ../shared/traces

The protocol of kv-attention-quantization section 0: windows of 768 tokens of WikiText-2, the first 256 not scored,
teacher-forced, the same weights throughout, so what differs is the KV alone.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvern.assembly.model import DeviceOptions, LoadedModel, make_device, open_model
from kvern.formats import kv as kv_formats
from kvern.runtime.device import PAGE_TOKENS, Device, StepBatch
from kvern.weights.hub import resolve

WINDOW, SCORED_FROM = 768, 256
BASE = "bf16"
Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Quality:
    """Over all scored positions: perplexity over the base run's, mean KL from it in nats, and how often both rank
    the same token first."""

    perplexity_ratio: float
    divergence: float
    agreement: float


def logits_of(device: Device, tokens: list[int], rows_at_once: int) -> Rows:
    """Logits of the scored positions of one sequence on pages 0, 1, ..."""
    found = []
    for begin in range(0, len(tokens), rows_at_once):
        rows = min(rows_at_once, len(tokens) - begin)
        wanted = np.arange(max(SCORED_FROM, begin), min(begin + rows, len(tokens) - 1), dtype=np.int32) - begin
        batch = StepBatch(
            tokens=np.array(tokens[begin : begin + rows], np.int32),
            positions=np.arange(begin, begin + rows, dtype=np.int32),
            row_begin=np.array([0, rows], np.int32),
            unit_begin=np.zeros(1, np.int32),
            unit_end=np.array([device.units], np.int32),
            block_table=np.arange(device.pages, dtype=np.int32)[None],
            hidden=np.zeros((rows, device.hidden_size), np.float32),
            logit_rows=wanted,
            stop=np.zeros(1, np.uint8),
            tail_slot=np.zeros(1, np.int32),
        )
        found.append(device.step(batch).logits)
    return np.concatenate(found)


def windows(model: LoadedModel, text: str, count: int) -> list[list[int]]:
    """Runs of 768 tokens, each begun with the model's start token if it has one."""
    tokenizer = model.tokenizer()
    tokens, start = tokenizer.encode(text[: count * WINDOW * 8]), tokenizer.encode("")[:1]
    cuts = [tokens[at : at + WINDOW] for at in range(0, count * WINDOW, WINDOW)]
    return [start + cut[len(start) :] for cut in cuts if len(cut) == WINDOW]


def log_softmax(logits: Rows) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def compare(base: Rows, tested: Rows, targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """(log likelihood of the base over the tested run, divergence, agreements), summed over rows."""
    sums = np.zeros(3)
    for at in range(0, len(targets), 32):
        rows = slice(at, at + 32)
        p, q = log_softmax(base[rows]), log_softmax(tested[rows])
        index = np.arange(len(p)), targets[rows]
        sums[0] += (p[index] - q[index]).sum()
        sums[1] += (np.exp(p) * (p - q)).sum()
        sums[2] += (p.argmax(axis=-1) == q.argmax(axis=-1)).sum()
    return sums


def measure(
    model: LoadedModel, runs: list[list[int]], formats: list[str], options: argparse.Namespace
) -> Iterator[tuple[str, Quality]]:
    """Each format's quality, as it is found."""

    def device(kv_format: str) -> Device:
        values = {"backend": options.backend, "kv_format": kv_format, "weight_format": options.weight_format}
        return make_device(model, DeviceOptions(**values, pages=WINDOW // PAGE_TOKENS, threads=options.threads))

    base_device = device(BASE)
    bases = [logits_of(base_device, run, options.rows) for run in runs]
    del base_device
    for name in formats:
        tested, sums = device(name), np.zeros(3)
        for run, base in zip(runs, bases, strict=True):
            sums += compare(base, logits_of(tested, run, options.rows), np.array(run[SCORED_FROM + 1 :]))
        sums /= sum(len(base) for base in bases)
        yield name, Quality(float(np.exp(sums[0])), float(sums[1]), float(sums[2]))


def bits_per_value(name: str, head_dim: int) -> float:
    """With steps and scales, without the tail."""
    return kv_formats.get(name).bytes_per_token(1, head_dim) * 8 / (2 * head_dim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a catalogue name or a GGUF file")
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"))
    parser.add_argument("--backend", default="cpu", choices=("cpu", "reference"))
    parser.add_argument("--weight-format", default="f32", help="f32 by default: no activation is rounded")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--rows", type=int, default=256, help="of one step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kv-format", action="append", help="all by default")
    options = parser.parse_args()
    model = open_model(resolve(options.model))
    with gzip.open(options.traces / "corpora" / "wikitext2_valid.txt.gz", "rt", encoding="utf-8") as file:
        runs = windows(model, file.read(), options.windows)
    default = [name for name in kv_formats.NAMES if name not in (BASE, "f32")]
    head_dim = model.spec.layers[0].head_dim
    sys.stdout.write(f"{model.path.name}, {options.backend}, {len(runs)} windows of {WINDOW} tokens\n")
    sys.stdout.write("| KV format | bits a value | KL (nats) | same first token | perplexity over bf16 KV |\n")
    sys.stdout.write("|---|---|---|---|---|\n")
    for name, q in measure(model, runs, options.kv_format or default, options):
        sys.stdout.write(
            f"| {name} | {bits_per_value(name, head_dim):.2f} | {q.divergence:.5f} | {q.agreement:.2%} | "
            f"{q.perplexity_ratio:.4f} |\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
