"""Weights of 4, 8 and 16 bits side by side: time of a layer at several numbers of rows; where 4 bits stop paying.

    python benchmarks/w4a16.py [--outputs 1536] [--inputs 576] [--matrices 30] [--threads 1]

Spec: kv-attention-quantization.md, system 7 (MARLIN): W4 / W8 is about 0.58 at one row, where reading weights is all
there is, and passes 1.0 between 32 and 128 rows, where computing takes over. ``--matrices`` different matrices take
turns so that they come from the last-level cache or memory as in a model. Times are the least of several runs; ratios
are of times of one run. w8a8 takes int8 inputs; w4a16 and bf16 take float32 ones, or bf16 ones on AMX.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from kvern import _native

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from weight_blocks import random_weight

ROWS = (1, 4, 8, 16, 32, 64)
FORMATS = ("w4a16", "w8a8", "bf16")


def least_seconds(weights: list[_native.PackedWeight], rows: int, pool: _native.Pool, rounds: int) -> float:
    """Of one pass over all matrices."""
    x = np.random.default_rng(0).standard_normal((rows, weights[0].k), dtype=np.float32)
    best = float("inf")
    for _ in range(rounds):
        begin = time.perf_counter()
        for weight in weights:
            _native.repeat_linear(x, weight, 1, None, pool)
        best = min(best, time.perf_counter() - begin)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=int, default=1536)
    parser.add_argument("--inputs", type=int, default=576)
    parser.add_argument("--matrices", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    pool = _native.Pool(options.threads)
    weights = {
        name: [random_weight(_native, name, options.outputs, options.inputs, i) for i in range(options.matrices)]
        for name in FORMATS
    }
    sizes = {name: sum(weight.nbytes for weight in found) / 1e6 for name, found in weights.items()}
    print(f"{_native.isa()}, {options.threads} threads, {options.matrices} x [{options.outputs}, {options.inputs}]: "
          + ", ".join(f"{name} {size:.0f} MB" for name, size in sizes.items()))  # fmt: skip
    for rows in ROWS:
        seconds = {name: least_seconds(found, rows, pool, options.rounds) for name, found in weights.items()}
        times = "  ".join(f"{name} {1e3 * seconds[name]:7.2f} ms" for name in FORMATS)
        to_8, to_16 = (seconds["w4a16"] / seconds[name] for name in ("w8a8", "bf16"))
        read = sizes["w4a16"] / 1e3 / seconds["w4a16"]
        print(
            f"{rows:3} rows  {times}   W4/W8 {to_8:.2f}   W4/bf16 {to_16:.2f}   W4 reads {read:.1f} GB/s", flush=True
        )


if __name__ == "__main__":
    main()
