"""What this machine could do at best: how fast its threads read, and how many operations a second they make."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kvern import _native

OPERATIONS = ("float32 fma", "int8 dot", "int8 tile", "bf16 tile")
# Per thread; the name says which memory they lie in on most servers of today.
READ_BYTES = {"256 KiB": 1 << 18, "8 MiB": 1 << 23, "64 MiB": 1 << 26, "256 MiB": 1 << 28}
WINDOW_S = 0.05


@dataclass(frozen=True, slots=True)
class Rate:
    """Median, smallest and largest of several short measurements, per second."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Of ``threads`` threads together: ``read`` in bytes/s by bytes per thread, ``operations`` in operations/s by
    kind (a multiply and an add are two); kinds that the machine lacks are absent."""

    threads: int
    isa: str
    read: dict[int, Rate]
    operations: dict[str, Rate]

    def read_rate(self, total_bytes: int) -> float:
        """Bytes/s for a working set of ``total_bytes`` over all threads: that of the next larger one measured."""
        each = total_bytes / self.threads
        return self.read[min((size for size in self.read if size >= each), default=max(self.read))].median


def measure_ceilings(threads: int, repeats: int = 5, tell: Callable[[str], None] = lambda _: None) -> Ceilings:
    """About a second and a half on an idle machine. ``tell`` hears what is being measured."""
    pool = _native.Pool(threads)

    def rate(once: Callable[[], float]) -> Rate:
        values = [once() for _ in range(repeats)]
        return Rate(statistics.median(values), min(values), max(values))

    read = {}
    for name, size in READ_BYTES.items():
        tell(f"reading {name} a thread")
        read[size] = rate(partial(_native.ceiling_read, pool, size, WINDOW_S))
    operations = {}
    for kind in OPERATIONS:
        tell(kind)
        found = rate(partial(_native.ceiling_operations, pool, kind, WINDOW_S))
        if found.median > 0:
            operations[kind] = found
    return Ceilings(threads, _native.isa(), read, operations)
