"""Every linear kernel against this machine's own limits, measured in the same run.

For each weight format that this machine serves (and its own activation format), numbers of rows and threads: the time
of one layer, rows encoded included; the bytes of the packed weight over that time as a fraction of a plain read of as
many bytes by as many threads; and its operations (2 per weight and row) as a fraction of the multiply instruction
alone, operands in registers. Medians, with the smallest and largest in brackets. Ceilings are the best of many short
looks before and after each format, so fractions are low rather than high where others use the machine.

On AVX2 the multiply ceiling is not reachable: int16 sums need an add for every multiply, and byte codes (q8_0, w8a8)
take two multiplies, so 0.5 is their limit.

    python benchmarks/kernels.py [--format Q4_0 ...] [--outputs 4096] [--inputs 4096] [--rows 1 32 ...] [--threads 1]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from records import Measured

from kvern import _native
from kvern.bench.machine import describe
from kvern.formats import weights
from kvern.formats.weight_format import WeightFormat

ROWS = (1, 4, 8, 32, 128, 512)
REPEATS = 7
CEILING_S = 0.005  # of one look at a ceiling: short, so that the best of many falls between preemptions
CEILING_LOOKS = 30
LEAST_S = 2e-3  # of one measurement: shorter layers are repeated inside it
ENCODED_ROWS = 256  # that are really encoded; a matrix repeats them


def served() -> list[WeightFormat]:
    """Formats that both Python and this machine's kernels know."""
    found = []
    for name in weights.NAMES:
        try:
            weight_format = weights.get(name)
            if _native.linear_served(name.lower(), activation_here(weight_format)):
                found.append(weight_format)
        except (ImportError, ValueError):
            continue  # a format without kernels
    return found


def activation_here(weight_format: WeightFormat) -> str:
    """The first of the format's activations that this machine's kernels take."""
    for activation in weight_format.activations:
        if _native.linear_served(weight_format.name.lower(), activation):
            return activation
    return weight_format.activation


def packed(weight_format: WeightFormat, outputs: int, inputs: int) -> _native.PackedWeight:
    """A matrix of normal numbers in the format, packed for the kernels."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((min(outputs, ENCODED_ROWS), inputs), dtype=np.float32)
    header, rows = weight_format.encode_matrix(values)
    rows = np.ascontiguousarray(np.tile(rows, (-(-outputs // len(rows)), 1))[:outputs])
    return _native.PackedWeight.from_blocks(
        weight_format.name.lower(), rows, outputs, inputs, header=header if header.size else None
    )


def repeated(once: Callable[[], float]) -> Measured:
    return Measured(tuple(once() for _ in range(REPEATS)))


def layer_seconds(weight: _native.PackedWeight, rows: int, activation: str, pool: _native.Pool) -> Measured:
    """Seconds of one layer, with the encoding of its rows."""
    x = np.random.default_rng(1).standard_normal((rows, weight.k), dtype=np.float32)

    def run(times: int) -> float:
        begin = time.perf_counter()
        _native.repeat_linear(x, weight, times, None, pool, activation)
        return (time.perf_counter() - begin) / times

    times = max(1, int(LEAST_S / run(1)))
    return repeated(lambda: run(times))


@dataclass
class Ceilings:
    """Bytes/s of a plain read of ``weight_bytes`` and operations/s by instruction, the best seen so far."""

    pool: _native.Pool
    weight_bytes: int
    read: float = 0.0
    operations: dict[str, float] = field(default_factory=dict)

    def take(self, kinds: tuple[str, ...]) -> None:
        """Measure once more and keep the better."""
        each = max(1 << 16, self.weight_bytes // self.pool.threads)
        for _ in range(CEILING_LOOKS):
            self.read = max(self.read, _native.ceiling_read(self.pool, each, CEILING_S))
            for kind in kinds:
                found = _native.ceiling_operations(self.pool, kind, CEILING_S)
                self.operations[kind] = max(self.operations.get(kind, 0.0), found)


def instruction_of(activation: str, rows: int) -> str:
    """The multiply instruction that the kernels use for an activation format and number of rows."""
    tiles = _native.isa() == "amx"
    if activation == "bf16":
        return "bf16 tile"
    if activation == "float32":
        return "float32 fma"
    return "int8 tile" if tiles and rows >= 8 else "int8 dot"


def show(weight_format: WeightFormat, options: argparse.Namespace, threads: int) -> None:
    """Prints the format's lines of the table."""
    weight = packed(weight_format, options.outputs, options.inputs)
    activation = activation_here(weight_format)
    pool = _native.Pool(threads)
    ceilings = Ceilings(pool, weight.nbytes)
    kinds = tuple({instruction_of(activation, rows) for rows in options.rows})
    ceilings.take(kinds)
    times = {rows: layer_seconds(weight, rows, activation, pool) for rows in options.rows}
    ceilings.take(kinds)
    for rows, seconds in times.items():
        microseconds = Measured(tuple(value * 1e6 for value in seconds.values))
        peak = ceilings.operations.get(instruction_of(activation, rows), 0.0)
        rate = 2.0 * rows * weight.n * weight.k / seconds.median
        of_peak = f"{rate / peak:.2f}" if peak else "-"
        print(
            f"| {weight_format.name.lower()} | {activation} | {threads} | {rows} | {microseconds} "
            f"| {weight.nbytes / seconds.median / 1e9:.1f} | {weight.nbytes / seconds.median / ceilings.read:.2f} "
            f"| {rate / 1e9:.0f} | {of_peak} |",
            flush=True,
        )


def main() -> None:
    names = [weight_format.name for weight_format in served()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", nargs="*", type=str.upper, default=names, choices=names)
    parser.add_argument("--outputs", type=int, default=4096)
    parser.add_argument("--inputs", type=int, default=4096)
    parser.add_argument("--rows", nargs="*", type=int, default=list(ROWS))
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    options = parser.parse_args()
    machine = describe()
    print(
        f"{machine.cpu}, {machine.cores} cores at {machine.ghz} GHz ({', '.join(machine.features)}), copies "
        f"{machine.copy_gb_s} GB/s; others kept {machine.busy_before} cores busy; kernels: {_native.isa()}; "
        f"weights [{options.outputs}, {options.inputs}]\n"
    )
    print("| format | activations | threads | rows | us | GB/s | of the read | GOP/s | of the multiply |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.format:
        for threads in options.threads:
            show(weights.get(name), options, threads)


if __name__ == "__main__":
    main()
