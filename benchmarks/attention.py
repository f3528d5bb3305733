"""The attention kernels against this machine's own limits, measured in the same run. One thread.

Decode: nanoseconds per (token, KV head) of one row at several contexts, and its bytes of keys and values per second
as a fraction of a plain read of the very same memory (same pages, same cache level).
Prefill: all rows of a sequence, floating-point operations that the causal mask leaves (4 per query head, dimension
and token seen) per second, as a fraction of the peak with operands in registers or the first-level cache: AMX tiles
where there are some, float32 fma otherwise. kv8 and kv4 use integer sums off the tiles, so theirs may exceed 1.
The work and its limit are run in turns, and the best of each counts; on a shared machine both sides swing, and a read
fraction above 1 means a bad measurement.

    python benchmarks/attention.py [--kv-format bf16 kv8 ...] [--heads 9] [--kv-heads 3] [--head-dim 64]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from kvern import _native
from kvern.config.schema import KV_FORMATS

ROUNDS = 15
CONTEXTS = (128, 512, 2048, 8192)
PREFILLS = (512, 2048)
TOGETHER = 96  # (row, query head) pairs of one call


class Clock:
    """The best time of a piece of work and of its limit, each run once in turn."""

    def __init__(self) -> None:
        self.work = self.limit = float("inf")

    def turn(self, work: Callable[[], object], limit: Callable[[], object]) -> None:
        begin = time.perf_counter()
        limit()
        middle = time.perf_counter()
        work()
        self.limit = min(self.limit, middle - begin)
        self.work = min(self.work, time.perf_counter() - middle)


def store_of(options: argparse.Namespace, kv_format: str, tokens: int) -> _native.KvStore:
    draw = np.random.default_rng(0)
    k, v = (draw.standard_normal((tokens, options.kv_heads, options.head_dim), np.float32) for _ in range(2))
    store = _native.KvStore(kv_format, options.kv_heads, options.head_dim, tokens)
    store.append(k, v)
    return store


def decode(options: argparse.Namespace, kv_format: str, tokens: int) -> tuple[float, float]:
    """(nanoseconds per token and KV head, fraction of the read bandwidth)."""
    store = store_of(options, kv_format, tokens)
    q = np.random.default_rng(1).standard_normal((1, options.heads, options.head_dim), np.float32)
    repeats = max(1, 20_000 // tokens)
    clock = Clock()
    for _ in range(ROUNDS):
        clock.turn(
            lambda: store.attend(q, tokens - 1, options.head_dim**-0.5, repeats=repeats), lambda: store.read(repeats)
        )
    return clock.work / repeats / tokens / options.kv_heads * 1e9, clock.limit / clock.work


def peak_operations(pool: _native.Pool) -> tuple[str, float]:
    """Name and operations per second of the fastest multiply-add that attention could use."""
    rates = {kind: _native.ceiling_operations(pool, kind, 0.01) for kind in ("bf16 tile", "float32 fma")}
    return max(rates.items(), key=lambda item: item[1])


def prefill(options: argparse.Namespace, kv_format: str, tokens: int) -> tuple[float, str, float]:
    """(milliseconds, name of the peak, fraction of it)."""
    store, pool = store_of(options, kv_format, tokens), _native.Pool(1)
    q = np.random.default_rng(1).standard_normal((tokens, options.heads, options.head_dim), np.float32)
    together = max(1, min(64, TOGETHER * options.kv_heads // options.heads))
    best, kind, peak = float("inf"), "", 0.0
    for _ in range(ROUNDS if tokens <= 512 else 5):
        kind, peak = max((kind, peak), peak_operations(pool), key=lambda item: item[1])
        begin = time.perf_counter()
        store.attend(q, 0, options.head_dim**-0.5, together=together)
        best = min(best, time.perf_counter() - begin)
    operations = 4 * options.heads * options.head_dim * tokens * (tokens + 1) / 2
    return best * 1e3, kind, operations / best / peak if peak > 0 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kv-format", nargs="*", default=[name for name in KV_FORMATS if name != "f32"])
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    options = parser.parse_args()
    print(f"{_native.isa()}, 1 thread, {options.heads} query and {options.kv_heads} KV heads of {options.head_dim}")
    first: dict[int, float] = {}
    for kv_format in options.kv_format:
        for tokens in CONTEXTS:
            nanoseconds, fraction = decode(options, kv_format, tokens)
            against = first.setdefault(tokens, nanoseconds) / nanoseconds
            print(
                f"{kv_format:13} decode, context {tokens:5} {nanoseconds:6.2f} ns per token and KV head, "
                f"{fraction:.2f} of the read bandwidth, {against:.2f} x {options.kv_format[0]}"
            )
        for tokens in PREFILLS:
            milliseconds, kind, fraction = prefill(options, kv_format, tokens)
            line = f"{kv_format:13} prefill, {tokens:4} rows {milliseconds:8.2f} ms"
            print(f"{line}, {fraction:.2f} of the {kind} peak")


if __name__ == "__main__":
    main()
