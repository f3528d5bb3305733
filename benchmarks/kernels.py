"""Linear kernels against this machine's own limits, measured in the same run.

One row: bytes of packed weight read per second, as a fraction of a plain read of the very same memory (same pages,
same cache level). More rows: int8 operations per second (2 per weight and row), as a fraction of the multiply-add
instruction alone, operands in registers. On AVX2 that ceiling is not reachable: the sums need an add for every
multiply, and byte codes (q8_0, w8a8) take two multiplies, so 0.5 is their limit. One thread. Best of several runs;
on a shared machine both sides swing. A fraction above 1 means a bad measurement and is printed as such.

    python benchmarks/kernels.py [--format q4_0 ...] [--outputs 4096] [--inputs 4096]
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


def stream_read(weight: _native.PackedWeight) -> float:
    """Bytes per second of one thread reading the packed weight and doing nothing with it."""
    times = max(1, int(3e7 / weight.nbytes))
    done = _native.read_weight(weight, times)
    return done / best_seconds(lambda: _native.read_weight(weight, times))


def register_peak() -> float:
    """int8 operations per second of one thread; 0 where the instruction set has no measurement."""
    loops = 100_000  # short, so that the best of many falls between preemptions
    done = _native.multiply_add_peak(loops)
    return done / best_seconds(lambda: _native.multiply_add_peak(loops), 5 * ROUNDS)


def share(rate: float, ceiling: float, name: str) -> str:
    if rate > 1.03 * ceiling:
        return f"(NOT VALID: {rate / ceiling:.2f} of {name})"
    return f"({rate / ceiling:.2f} of {name})"


def measure(weight: _native.PackedWeight, rows: int, pool: _native.Pool) -> float:
    """Seconds of one layer, with the encoding of its rows."""
    x = np.random.default_rng(0).standard_normal((rows, weight.k), dtype=np.float32)
    times = max(1, int(1e8 / (weight.n * weight.k * rows)))
    return best_seconds(lambda: _native.repeat_linear(x, weight, times, None, pool)) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", nargs="*", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--outputs", type=int, default=4096)
    parser.add_argument("--inputs", type=int, default=4096)
    options = parser.parse_args()
    pool = _native.Pool(1)
    print(f"{_native.isa()}, 1 thread, weights [{options.outputs}, {options.inputs}]")
    for name in options.format:
        weight = random_weight(_native, name, options.outputs, options.inputs)
        stream = stream_read(weight)
        read = weight.nbytes / measure(weight, 1, pool)
        stream = max(stream, stream_read(weight))  # before and after: neither side alone gets the quiet moment
        line = f"{name:5} 1 row {read / 1e9:6.1f} GB/s {share(read, stream, 'stream')}"
        for rows in (32, 512):
            peak = register_peak()
            rate = 2 * rows * weight.n * weight.k / measure(weight, rows, pool)
            peak = max(peak, register_peak())
            line += f"   {rows} rows {rate / 1e9:5.0f} GOP/s"
            if name in INTEGER_FORMATS and peak:
                line += f" {share(rate, peak, 'int8 peak')}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
