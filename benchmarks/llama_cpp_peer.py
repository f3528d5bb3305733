"""llama.cpp's own benchmark programs, run on the same file in the same session (peers/build_llama_cpp.sh)."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Peer:
    """Paths of the programs; None: that comparison is left out."""

    model: Path
    threads: int
    bench: Path | None = None
    batched_bench: Path | None = None


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} exited with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def _rows(peer: Peer, flags: list[str]) -> list[dict[str, Any]]:
    command = [str(peer.bench), "-m", str(peer.model), "-t", str(peer.threads), *flags, "-o", "json"]
    rows: list[dict[str, Any]] = json.loads(_run(command))
    return rows


def prefill_once(peer: Peer, tokens: int) -> dict[str, float]:
    """Tokens/s of one prefill of ``tokens``, after its own warm-up, for flash attention off and on."""
    rows = _rows(peer, ["-p", str(tokens), "-n", "0", "-fa", "0,1", "-r", "1"])
    return {f"fa {'on' if row['flash_attn'] == 1 else 'off'}": float(row["avg_ts"]) for row in rows}


def decode_once(peer: Peer, context: int, tokens: int) -> dict[str, float]:
    """Tokens/s of ``tokens`` decoded one by one after ``context`` tokens, for flash attention off and on."""
    rows = _rows(peer, ["-p", "0", "-n", str(tokens), "-d", str(context), "-fa", "0,1", "-r", "1"])
    return {f"fa {'on' if row['flash_attn'] == 1 else 'off'}": float(row["avg_ts"]) for row in rows}


def batch_once(peer: Peer, requests: int, prompt: int, output: int) -> dict[str, float]:
    """Output tokens per second of the whole wall, prefill included, for ``requests`` at once."""
    found = {}
    for flash in ("off", "on"):
        command = [
            str(peer.batched_bench), "-m", str(peer.model), "-t", str(peer.threads), "-tb", str(peer.threads),
            "-c", str(requests * (prompt + output) + 512), "-b", "2048", "-ub", "512", "-npp", str(prompt),
            "-ntg", str(output), "-npl", str(requests), "-fa", flash, "--output-format", "jsonl",
        ]  # fmt: skip
        rows = [json.loads(line) for line in _run(command).splitlines() if line.startswith("{")]
        found[f"fa {flash}"] = requests * output / float(rows[-1]["t"])
    return found


def start_once(peer: Peer) -> dict[str, float]:
    """Wall seconds of a process that loads the model, reads one token and decodes one."""
    command = [str(peer.bench), "-m", str(peer.model), "-t", str(peer.threads)]
    command += ["-p", "1", "-n", "1", "-r", "1", "--no-warmup", "-o", "json"]
    start = time.perf_counter()
    _run(command)
    return {"llama-bench": time.perf_counter() - start}
