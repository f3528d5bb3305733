"""Are kvern's numbers right on real files? Greedy text, perplexity, divergence: against transformers in float32.

    python benchmarks/correctness.py --model smollm2 --model gemma3-270m --traces ../shared/traces --write

Needs the ``test-peers`` extra. ``--llama-perplexity PROGRAM`` (peers/build_llama_cpp.sh) adds llama.cpp's own
numbers: its run on the file against its run on the same weights as float32. ``--write`` puts the tables in
docs/correctness.md. One window of 512 tokens takes seconds, so the full run (50 prompts, 8 windows) takes long.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peer_transformers import Peer

from kvern.assembly.model import DeviceOptions, LoadedModel, make_device, open_model
from kvern.runtime.device import PAGE_TOKENS, Device, StepBatch
from kvern.weights.hub import resolve

WINDOW, SCORED_FROM = 512, 256  # llama-perplexity's: the second half of each window is scored
GAP = 1e-3
DOCUMENT = Path(__file__).parent.parent / "docs" / "correctness.md"
ROUTES = {
    "reference": DeviceOptions(backend="reference", kv_format="f32"),
    "cpu, file's format": DeviceOptions(),
    "cpu, file's format, kv8": DeviceOptions(kv_format="kv8"),
    "cpu, f32": DeviceOptions(weight_format="f32"),
    "cpu, bf16": DeviceOptions(weight_format="bf16"),
    "cpu, w8a8": DeviceOptions(weight_format="w8a8"),
}


@dataclass(frozen=True)
class Scores:
    """Over all scored positions: perplexity, mean KL divergence to the peer in nats, and how often both rank the
    same token first."""

    perplexity: float
    divergence: float
    agreement: float


def step(device: Device, tokens: list[int], begin: int, wanted: list[int]) -> NDArray[np.float32]:
    """Run tokens from ``begin`` on of a sequence on pages 0, 1, ...; logits at the positions ``wanted``."""
    rows = len(tokens) - begin
    batch = StepBatch(
        tokens=np.array(tokens[begin:], np.int32),
        positions=np.arange(begin, len(tokens), dtype=np.int32),
        row_begin=np.array([0, rows], np.int32),
        unit_begin=np.zeros(1, np.int32),
        unit_end=np.array([device.units], np.int32),
        block_table=np.arange(device.pages, dtype=np.int32)[None],
        hidden=np.zeros((rows, device.hidden_size), np.float32),
        logit_rows=np.array([position - begin for position in wanted], np.int32),
        stop=np.zeros(1, np.uint8),
    )
    return device.step(batch).logits


def device_for(model: LoadedModel, options: DeviceOptions, tokens: int) -> Device:
    values = {name: getattr(options, name) for name in ("backend", "kv_format", "weight_format")}
    return make_device(model, DeviceOptions(**values, pages=-(-tokens // PAGE_TOKENS) + 1, max_rows=max(tokens, 16)))


def prompts(traces: Path, count: int) -> list[str]:
    """First turns of mt_bench, then of vicuna_bench."""
    found = []
    for name in ("mt_bench", "vicuna_bench"):
        with gzip.open(traces / "prompts" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            found += [json.loads(line)["turns"][0] for line in file]
    return found[:count]


def greedy(device: Device, prompt: list[int], count: int) -> list[int]:
    """The prompt and ``count`` tokens more; end tokens are taken like any other."""
    tokens, begin = list(prompt), 0
    for _ in range(count):
        logits = step(device, tokens, begin, [len(tokens) - 1])
        begin = len(tokens)
        tokens.append(int(logits[0].argmax()))
    return tokens


def compare_greedy(model: LoadedModel, peer: Peer, texts: list[str], count: int) -> dict[str, int]:
    """Our greedy tokens against the peer's choice at the same place, up to its first near tie."""
    tokenizer = model.tokenizer()
    encoded = [tokenizer.encode(text)[:400] for text in texts]
    device = device_for(model, ROUTES["reference"], max(map(len, encoded)) + count)
    equal, compared, ties = 0, 0, 0
    for prompt in encoded:
        tokens = greedy(device, prompt, count)
        theirs = peer.logits(tokens[:-1], len(prompt) - 1)
        top = np.sort(theirs, axis=-1)[:, -2:]
        near = np.flatnonzero(top[:, 1] - top[:, 0] < GAP)
        until = int(near[0]) if near.size else len(theirs)
        ties += near.size > 0
        compared += until
        ours = np.array(tokens[len(prompt) :][:until])
        equal += bool(np.array_equal(theirs[:until].argmax(axis=-1), ours))
    return {"prompts": len(texts), "equal": equal, "tokens compared": compared, "prompts with a near tie": ties}


def windows(model: LoadedModel, text: str, count: int) -> list[list[int]]:
    """Runs of 512 tokens, as llama-perplexity cuts them: the first token of each is the start token if there is one
    that the model wants."""
    tokenizer = model.tokenizer()
    tokens = tokenizer.encode(text[: count * WINDOW * 8])
    start = tokenizer.encode("")[:1]
    found = [tokens[begin : begin + WINDOW] for begin in range(0, count * WINDOW, WINDOW)]
    return [(start + window[len(start) :]) for window in found if len(window) == WINDOW]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def in_blocks(rows: int, size: int = 32) -> Iterator[slice]:
    for begin in range(0, rows, size):
        yield slice(begin, min(begin + size, rows))


def score(model: LoadedModel, peer: Peer, runs: list[list[int]], routes: list[str]) -> dict[str, Scores]:
    """Teacher-forced over every window: each route, and the peer itself (whose divergence is zero)."""
    totals = {name: np.zeros(3) for name in ["transformers, float32", *routes]}
    positions = 0
    devices = {name: device_for(model, ROUTES[name], WINDOW) for name in routes}
    for run in runs:
        base = peer.logits(run, SCORED_FROM)[:-1]
        targets = np.array(run[SCORED_FROM + 1 :])
        positions += len(targets)
        found = {"transformers, float32": base}
        for name, device in devices.items():
            found[name] = step(device, run, 0, list(range(SCORED_FROM, WINDOW - 1)))
            totals[name] += _sums(base, found[name], targets)
        totals["transformers, float32"] += _sums(base, base, targets)
    return {
        name: Scores(float(np.exp(t[0] / positions)), t[1] / positions, t[2] / positions)
        for name, t in totals.items()
    }


def _sums(base: NDArray[np.float32], logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """(negative log likelihood, divergence, agreements) summed over rows."""
    sums = np.zeros(3)
    for rows in in_blocks(len(targets)):
        p, q = log_softmax(base[rows]), log_softmax(logits[rows])
        sums[0] -= q[np.arange(len(q)), targets[rows]].sum()
        sums[1] += (np.exp(p) * (p - q)).sum()
        sums[2] += (p.argmax(axis=-1) == q.argmax(axis=-1)).sum()
    return sums


def as_float_file(path: Path, target: Path) -> None:
    """The same GGUF file with every tensor dequantised to float32."""
    import gguf

    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        values = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        writer.add_tensor(tensor.name, values.reshape(tuple(int(size) for size in tensor.shape[::-1])))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp(program: Path, path: Path, text: str, count: int) -> Scores:
    """llama-perplexity on the file against itself on float32 weights and float32 KV."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, exact, logits = (Path(folder) / name for name in ("text", "f32.gguf", "logits"))
        corpus.write_text(text, encoding="utf-8")
        as_float_file(path, exact)
        shared = ["-f", corpus, "-c", str(WINDOW), "-b", str(WINDOW), "--chunks", str(count), "-t", "2",
                  "--kl-divergence-base", logits]  # fmt: skip
        base = [program, "-m", exact, "-ctk", "f32", "-ctv", "f32", *shared]
        subprocess.run(base, check=True, capture_output=True, timeout=7200)
        done = subprocess.run([program, "-m", path, *shared, "--kl-divergence"], check=True, capture_output=True,
                              text=True, timeout=7200)  # fmt: skip
    report = done.stdout + done.stderr

    def number(label: str) -> float:
        match = re.search(re.escape(label) + r"\s*:\s*([-\d.]+)", report)
        if match is None:
            raise RuntimeError(f"llama-perplexity reported no {label!r}: {report[-800:]}")
        return float(match[1])

    return Scores(number("Mean PPL(Q)"), number("Mean    KLD"), number("Same top p") / 100)


def table(scores: dict[str, Scores]) -> list[str]:
    lines = ["| | perplexity | mean KL (nats) | same first token |", "|---|---|---|---|"]
    for name, s in scores.items():
        lines.append(f"| {name} | {s.perplexity:.4f} | {s.divergence:.6f} | {s.agreement:.2%} |")
    return lines


def examine(name: str, options: argparse.Namespace) -> list[str]:
    """All measurements of one model, as lines of Markdown."""
    path = resolve(name)
    model, peer = open_model(path), Peer(path)
    lines = [f"### {path.name}", ""]
    if options.prompts:
        found = compare_greedy(model, peer, prompts(options.traces, options.prompts), options.tokens)
        facts = ", ".join(f"{key}: {value}" for key, value in found.items())
        lines += [f"Greedy, reference against transformers, {options.tokens} tokens a prompt: {facts}.", ""]
        print(lines[-2], flush=True)
    if options.windows:
        with gzip.open(options.traces / "corpora" / "wikitext2_valid.txt.gz", "rt", encoding="utf-8") as file:
            text = file.read()
        runs = windows(model, text, options.windows)
        scores = score(model, peer, runs, options.route or list(ROUTES))
        if options.llama_perplexity is not None:
            scores["llama.cpp, file's format"] = llama_cpp(options.llama_perplexity, path, text, len(runs))
        lines += [f"WikiText-2 validation, {len(runs)} windows of {WINDOW} tokens, second half scored:", ""]
        lines += [*table(scores), ""]
        print("\n".join(table(scores)), flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="a catalogue name or a GGUF file")
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"))
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--route", action="append", choices=list(ROUTES))
    parser.add_argument("--llama-perplexity", type=Path)
    parser.add_argument("--write", action="store_true", help=f"put the tables in {DOCUMENT.name}")
    options = parser.parse_args()
    lines = [line for name in options.model for line in examine(name, options)]
    if options.write:
        marked = re.compile(r"(<!-- measured: begin -->\n).*(<!-- measured: end -->)", re.DOTALL)
        text = DOCUMENT.read_text(encoding="utf-8")
        replacement = "\n".join(["", *lines])
        DOCUMENT.write_text(marked.sub(lambda m: m[1] + replacement + m[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
