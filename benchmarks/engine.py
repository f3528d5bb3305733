"""The engine's speed on one model, beside llama.cpp on the same file in the same run. Run it on an idle machine.

    python benchmarks/engine.py --model smollm2 [--llama-bench P] [--llama-batched-bench P] [--json F] [--write PAGE]

docs/performance.md says what each row means.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp_peer
from llama_cpp_peer import Peer
from records import Row, alternate, markdown, write_section

import kvern
from kvern.bench.installed import LIMIT_BYTES, sizes
from kvern.bench.machine import Machine, busy_cores, describe
from kvern.bench.offline import Answer, answer, batch, salted_prompts
from kvern.core.ports import EngineClient
from kvern.llm import AsyncLLM
from kvern.weights.hub import resolve

BUSY = 0.2  # cores that others may keep busy before the numbers are worth nothing
PREFILLS = (512, 2048)
CONTEXTS = (128, 1024)
DECODED = 128
BATCHES = (32, 64)
BATCH_PROMPT, BATCH_OUTPUT = 128, 128


class Bench:
    """Measures one open engine; keeps the rows and the worst prefix hit rate seen."""

    def __init__(self, client: EngineClient, loop: asyncio.Runner, peer: Peer, repeats: int) -> None:
        self._client, self._loop, self._peer, self._repeats = client, loop, peer, repeats
        self.rows: list[Row] = []
        self.hit_rate = 0.0

    def _one(self, prompt_tokens: int, output: int) -> Answer:
        prompt = salted_prompts(self._client, 1, prompt_tokens)[0]
        got = self._loop.run(answer(self._client, prompt, output))
        self.hit_rate = max(self.hit_rate, got.cached_tokens / prompt_tokens)
        return got

    def _record(
        self, name: str, unit: str, ours: Callable[[], float], peer: Callable[[], dict[str, float]] | None
    ) -> None:
        measured, theirs = alternate(self._repeats, ours, peer)
        self.rows.append(Row(name, unit, measured, theirs))
        print(
            f"{name}: {measured}  llama.cpp: { ({k: str(v) for k, v in theirs.items()}) }",
            file=sys.stderr,
            flush=True,
        )

    def prefill(self, tokens: int) -> None:
        peer = (lambda: llama_cpp_peer.prefill_once(self._peer, tokens)) if self._peer.bench else None
        self._record(f"prefill {tokens}", "tokens/s", lambda: tokens / self._one(tokens, 1).token_s[0], peer)

    def decode(self, context: int) -> None:
        def ours() -> float:
            times = self._one(context, DECODED + 1).token_s
            return DECODED / (times[-1] - times[0])

        peer = (lambda: llama_cpp_peer.decode_once(self._peer, context, DECODED)) if self._peer.bench else None
        self._record(f"decode, batch 1, context {context}", "tokens/s", ours, peer)

    def batch(self, requests: int) -> None:
        def ours() -> float:
            prompts = salted_prompts(self._client, requests, BATCH_PROMPT)
            done = self._loop.run(batch(self._client, prompts, BATCH_OUTPUT))
            self.hit_rate = max(self.hit_rate, done.hit_rate)
            return done.output_per_s

        def theirs() -> dict[str, float]:
            return llama_cpp_peer.batch_once(self._peer, requests, BATCH_PROMPT, BATCH_OUTPUT)

        name = f"{requests} requests of {BATCH_PROMPT} + {BATCH_OUTPUT}"
        self._record(name, "output tokens/s", ours, theirs if self._peer.batched_bench else None)


def cold_start(model: str, threads: int) -> float:
    """Wall seconds from starting ``kvern generate`` to its first character of output."""
    command = [
        sys.executable,
        "-m",
        "kvern.cli.main",
        "generate",
        model,
        "--prompt",
        "A mill is",
        "--max-tokens",
        "1",
    ]
    command += ["--ignore-eos", "--temperature", "0", "--threads", str(threads)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.stdout.read()
    if not first or process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}")
    return seconds


def run(arguments: argparse.Namespace, peer: Peer) -> tuple[list[Row], float, dict[str, Any]]:
    """All rows, the worst hit rate, and what the engine says of itself."""
    ours, theirs = alternate(
        arguments.repeats,
        lambda: cold_start(arguments.model, peer.threads),
        (lambda: llama_cpp_peer.start_once(peer)) if peer.bench else None,
    )
    rows = [Row("start to first token", "s", ours, theirs, best=min)]
    with asyncio.Runner() as loop:
        limits = {"max_running": max(BATCHES), "max_context": max(PREFILLS) + 64}
        llm = AsyncLLM(arguments.model, embed=False, threads=peer.threads, **limits)
        loop.run(llm.start())
        client = llm.client
        try:
            bench = Bench(client, loop, peer, arguments.repeats)
            loop.run(batch(client, salted_prompts(client, 2, max(PREFILLS)), 2))  # warm, as llama-bench does
            for tokens in PREFILLS:
                bench.prefill(tokens)
            for context in CONTEXTS:
                bench.decode(context)
            for requests in BATCHES:
                bench.batch(requests)
            info = client.info
            facts = {"weights": info.weight_format, "kv": info.kv_format, "isa": info.isa, "threads": info.threads}
            facts["resident_mib"] = round(loop.run(client.stats()).resident_bytes / 2**20)
            return rows + bench.rows, bench.hit_rate, facts
        finally:
            loop.run(llm.close())


def report(machine: Machine, rows: list[Row], hit_rate: float, facts: dict[str, Any], arguments: Any) -> str:
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    lines = [
        f"{date}, kvern {kvern.__version__}, {arguments.model}: weights {facts['weights']}, KV {facts['kv']}, "
        f"{facts['isa']} kernels, {facts['threads']} threads, {facts['resident_mib']} MiB resident; medians of "
        f"{arguments.repeats} (smallest-largest); worst prefix hit rate {100 * hit_rate:.1f} %.",
        "",
        f"Machine: {machine.cpu}, {machine.cores} cores at {machine.ghz} GHz ({', '.join(machine.features)}), "
        f"{machine.memory_gib} GiB, copies {machine.copy_gb_s} GB/s; others kept {machine.busy_before} cores busy "
        f"before and {busy_cores():.2f} after.",
        "",
        markdown(rows),
    ]
    try:
        installed = sizes()
    except ModuleNotFoundError:  # PackageNotFoundError is one: running from a checkout
        return "\n".join(lines)
    largest = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in list(installed.items())[:4])
    total = sum(installed.values())
    lines += ["", f"Installed: {total / 1e6:.0f} MB of {LIMIT_BYTES / 1e6:.0f} allowed (MB: {largest})."]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="smollm2", help="name or file (default: smollm2)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--llama-batched-bench", type=Path)
    parser.add_argument("--json", type=Path, help="write all repetitions to this file")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="fill the generated section of this page")
    parser.add_argument("--busy-ok", action="store_true", help="measure although others use the machine")
    arguments = parser.parse_args()
    machine = describe()
    if machine.busy_before > BUSY and not arguments.busy_ok:
        print(
            f"others keep {machine.busy_before} cores busy; numbers taken now are noise (--busy-ok)", file=sys.stderr
        )
        return 1
    file = resolve(arguments.model)
    peer = Peer(file, arguments.threads, arguments.llama_bench, arguments.llama_batched_bench)
    rows, hit_rate, facts = run(arguments, peer)
    text = report(machine, rows, hit_rate, facts, arguments)
    print(text)
    if arguments.json:
        everything = {"machine": machine.as_json(), "engine": facts, "hit_rate": hit_rate}
        arguments.json.write_text(json.dumps(everything | {"rows": [row.as_json() for row in rows]}, indent=1))
    if arguments.write:
        write_section(arguments.write, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
