"""kvern beside its peers on one model, one after the other on an idle machine, in one command.

    benchmarks/peers/build_llama_cpp.sh ~/peers/llama && benchmarks/peers/build_openvino.sh ~/peers/openvino \
      && benchmarks/peers/build_vllm.sh ~/peers/vllm
    python benchmarks/beside_peers.py --model smollm2 --peers ~/peers [--only kvern,llama.cpp] [--write PAGE] \
      --kvern "w8a8+kv8: weight_format=w8a8 kv_format=kv8"

kvern runs before, between and after the peers, so that a slow spell of the machine shows as its own spread. Precision
differs by row (the table says which): compare like with like.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import llama_cpp_peer
from llama_cpp_peer import Peer
from peers import workload
from records import Measured

from kvern.bench.machine import busy_cores, describe
from kvern.weights.hub import resolve

HERE = Path(__file__).resolve().parent / "peers"
SEED = 20261121
BUSY = 0.2  # cores that others may keep busy before the numbers are worth nothing
Samples = dict[str, dict[str, list[float]]]  # case -> engine -> values
UNITS: dict[str, str] = {}


def lines_of(command: list[str]) -> Iterator[dict[str, object]]:
    """The JSON lines a worker prints; its other output goes to stderr. Raises RuntimeError when it fails."""
    environment = os.environ | {workload.STARTED: str(time.time())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"case"'):
                yield json.loads(line)
            else:
                print(line, end="", file=sys.stderr)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:2])} exited with {process.returncode}")


def note(samples: Samples, engine: str, case: str, unit: str, value: float) -> None:
    UNITS[case] = unit
    samples.setdefault(case, {}).setdefault(engine, []).append(value)
    print(f"{engine}: {case}: {value:.1f} {unit}", file=sys.stderr, flush=True)


class Comparison:
    """Where everything is; each method measures one engine and adds to ``samples``."""

    def __init__(self, model: Path, peers: Path, repeats: int) -> None:
        self.model, self.peers, self.repeats = model, peers, repeats
        self.samples: Samples = {}
        self._seed = SEED

    def _worker(self, engine: str, python: Path | str, script: str, *arguments: str) -> None:
        self._seed += 1
        command = [str(python), str(HERE / script), *arguments[:1], str(self.repeats), str(self._seed)]
        for row in lines_of([*command, *arguments[1:]]):
            note(self.samples, engine, str(row["case"]), str(row["unit"]), float(str(row["value"])))

    def kvern(self, label: str, options: list[str]) -> None:
        self._worker(label, sys.executable, "kvern_worker.py", str(self.model), *options)

    def openvino(self) -> None:
        """Converts the model on first use."""
        python = self.peers / "openvino" / "bin" / "python"
        converted = self.folder().with_suffix(".openvino-int8")
        if not converted.is_dir():
            optimum = python.with_name("optimum-cli")
            export = ["export", "openvino", "-m", self.folder(), "--task", "text-generation-with-past"]
            subprocess.run([optimum, *export, "--weight-format", "int8", converted], check=True)
        self._worker("OpenVINO GenAI, int8", python, "openvino_worker.py", str(converted))

    def vllm(self) -> None:
        python = self.peers / "vllm" / "bin" / "python"
        self._worker("vLLM CPU, bf16", python, "vllm_worker.py", str(self.folder()))

    def folder(self) -> Path:
        """The model as a Hugging Face folder in bfloat16, made on first use."""
        folder = self.peers / "models" / self.model.stem
        if not folder.is_dir():
            python = self.peers / "openvino" / "bin" / "python"
            subprocess.run([python, HERE / "hugging_face_folder.py", self.model, folder], check=True)
        return folder

    def llama_cpp(self) -> None:
        """llama.cpp's own programs, flash attention off and on; they have no shared-prefix case."""
        programs = self.peers / "llama" / "bin"
        peer = Peer(self.model, 2, programs / "llama-bench", programs / "llama-batched-bench")
        for _ in range(self.repeats):
            for tokens in workload.PREFILLS:
                self._llama(f"prefill {tokens}", "tokens/s", llama_cpp_peer.prefill_once(peer, tokens))
            for context in workload.CONTEXTS:
                found = llama_cpp_peer.decode_once(peer, context, workload.DECODED)
                self._llama(f"decode, batch 1, context {context}", "tokens/s", found)
        for requests in workload.BATCHES[1:]:  # minutes each: once
            found = llama_cpp_peer.batch_once(peer, requests, workload.BATCH_PROMPT, workload.BATCH_OUTPUT)
            name = f"{requests} requests of {workload.BATCH_PROMPT} + {workload.BATCH_OUTPUT}"
            self._llama(name, "output tokens/s", found)

    def _llama(self, case: str, unit: str, found: dict[str, float]) -> None:
        for setting, value in found.items():
            note(self.samples, f"llama.cpp, {setting}", case, unit, value)


def table(samples: Samples, ours: list[str]) -> str:
    """Medians with spread; one ratio for each of our settings against the best peer of the row."""
    peers = sorted({engine for row in samples.values() for engine in row if engine not in ours})
    ratios = [f"{name} / best peer" for name in ours]
    lines = ["| " + " | ".join(["case", "unit", *ours, *peers, *ratios]) + " |"]
    lines.append("|" + "---|" * (2 + 2 * len(ours) + len(peers)))
    for case, row in samples.items():
        medians = {engine: Measured(tuple(values)) for engine, values in row.items()}
        seconds = UNITS[case] in ("s", "MiB")
        theirs = [measured.median for engine, measured in medians.items() if engine not in ours]
        cells = [case, UNITS[case], *(str(medians.get(engine, "-")) for engine in [*ours, *peers])]
        for name in ours:
            if name not in medians or not theirs:
                cells.append("-")
            else:
                value = medians[name].median
                cells.append(f"{min(theirs) / value if seconds else value / max(theirs):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def settings(texts: list[str]) -> dict[str, list[str]]:
    """`label: option=value ...` -> label and options; always the file's own formats first."""
    found: dict[str, list[str]] = {"kvern": []}
    for text in texts:
        label, _, options = text.partition(":")
        found[f"kvern {label.strip()}"] = options.split()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="smollm2", help="name or file (default: smollm2)")
    parser.add_argument("--peers", type=Path, required=True, help="where the build scripts put llama, openvino, vllm")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="llama.cpp,openvino,vllm", help="which peers, comma-separated")
    parser.add_argument("--kvern", action="append", default=[], metavar="LABEL: OPTION=VALUE ...")
    parser.add_argument("--json", type=Path, help="write every repetition to this file")
    parser.add_argument("--busy-ok", action="store_true", help="measure although others use the machine")
    arguments = parser.parse_args()
    machine = describe()
    if machine.busy_before > BUSY and not arguments.busy_ok:
        print(f"others keep {machine.busy_before} cores busy; numbers taken now are noise", file=sys.stderr)
        return 1
    compared = Comparison(resolve(arguments.model).resolve(), arguments.peers.resolve(), arguments.repeats)
    engines = {"llama.cpp": compared.llama_cpp, "openvino": compared.openvino, "vllm": compared.vllm}
    ours = settings(arguments.kvern)
    for peer in [None, *arguments.only.split(",")]:
        if peer:
            engines[peer]()
        for label, options in ours.items():
            compared.kvern(label, options)
    print(f"Machine: {machine.cpu}, {machine.cores} cores ({', '.join(machine.features)}), {machine.memory_gib} GiB;")
    print(f"others kept {machine.busy_before} cores busy before and {busy_cores():.2f} after.\n")
    print(table(compared.samples, list(ours)))
    if arguments.json:
        arguments.json.write_text(json.dumps(compared.samples, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
