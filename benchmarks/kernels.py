"""Linear kernels against this machine's own limits, measured in the same run.

One row: bytes of packed weight read per second, as a fraction of a plain stream read of as many bytes. More rows:
int8 operations per second (2 per weight and row), as a fraction of multiply-adds in registers. One thread unless
--threads says otherwise (the peak is of one thread times their number). Best of several runs; shared machines swing,
so only fractions mean much.

    python benchmarks/kernels.py [--threads 1] [--format q4_0 ...] [--outputs 4096] [--inputs 4096]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kvern import _native

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from weight_blocks import FORMATS, random_weight

ROUNDS = 7
INTEGER_FORMATS = [name for name in FORMATS if name not in ("f32", "f16", "bf16")]


def best_seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    best = float("inf")
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begin)
    return best


def stream_read(size: int) -> float:
    """Bytes per second of one thread summing ``size`` bytes."""
    data = np.ones(max(1, size // 8), np.uint64)
    return data.nbytes / best_seconds(data.sum)


def register_peak() -> float:
    """int8 operations per second of one thread; 0 where the instruction set has no measurement."""
    loops = 2_000_000
    done = _native.multiply_add_peak(loops)
    return done / best_seconds(lambda: _native.multiply_add_peak(loops))


def measure(weight: _native.PackedWeight, rows: int, pool: _native.Pool) -> float:
    """Seconds of one layer, with the encoding of its rows."""
    x = np.random.default_rng(0).standard_normal((rows, weight.k), dtype=np.float32)
    times = max(1, int(1e8 / (weight.n * weight.k * rows)))
    return best_seconds(lambda: _native.repeat_linear(x, weight, times, None, pool)) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--format", nargs="*", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--outputs", type=int, default=4096)
    parser.add_argument("--inputs", type=int, default=4096)
    options = parser.parse_args()
    pool = _native.Pool(options.threads)
    print(f"{_native.isa()}, {options.threads} thread(s), weights [{options.outputs}, {options.inputs}]")
    for name in options.format:
        weight = random_weight(_native, name, options.outputs, options.inputs)
        seconds = measure(weight, 1, pool)
        stream = stream_read(weight.nbytes) * options.threads
        read = weight.nbytes / seconds
        line = f"{name:5} 1 row {read / 1e9:6.1f} GB/s ({read / stream:.2f} of stream)"
        for rows in (32, 512):
            rate = 2 * rows * weight.n * weight.k / measure(weight, rows, pool)
            line += f"   {rows} rows {rate / 1e9:6.0f} GOP/s"
            peak = register_peak() * options.threads
            if name in INTEGER_FORMATS and peak:
                line += f" ({rate / peak:.2f} of int8 peak)"
        print(line, flush=True)


if __name__ == "__main__":
    main()
