"""Which CPUs the compute threads are tied to: whole cores before second threads, one memory node before the next.

The choice is a pure function of the topology; ``read_topology`` reads it from Linux.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SYSTEM = Path("/sys/devices/system")


@dataclass(frozen=True, slots=True)
class Cpu:
    """One that this process may use: its number, its core (package and core number), its memory node."""

    id: int
    core: tuple[int, int]
    node: int


def place(threads: int, cpus: Sequence[Cpu]) -> tuple[int, ...]:
    """A CPU for each of ``threads``, or () where tying them would do harm.

    Threads are tied only when they are to have at least half of the cores (others then run on what is left), and
    there are at least two. A memory node is filled before the next is begun, the one with most cores first; a second
    thread of a core is used only when all cores of all nodes have one.
    """
    cores = {cpu.core for cpu in cpus}
    if threads < 2 or threads > len(cpus) or 2 * threads < len(cores):
        return ()
    first, second = _by_rank(cpus)
    return tuple(cpu.id for cpu in [*_node_by_node(first), *_node_by_node(second)][:threads])


def _by_rank(cpus: Sequence[Cpu]) -> tuple[list[Cpu], list[Cpu]]:
    """The first CPU of each core, and the others."""
    seen: set[tuple[int, int]] = set()
    first: list[Cpu] = []
    others: list[Cpu] = []
    for cpu in sorted(cpus, key=lambda cpu: cpu.id):
        (others if cpu.core in seen else first).append(cpu)
        seen.add(cpu.core)
    return first, others


def _node_by_node(cpus: Iterable[Cpu]) -> list[Cpu]:
    nodes: dict[int, list[Cpu]] = {}
    for cpu in cpus:
        nodes.setdefault(cpu.node, []).append(cpu)
    order = sorted(nodes, key=lambda node: (-len(nodes[node]), node))
    return [cpu for node in order for cpu in nodes[node]]


def read_topology(system: Path = _SYSTEM, allowed: Iterable[int] | None = None) -> tuple[Cpu, ...]:
    """The CPUs that this process may use (``allowed``: these). What the system does not tell counts as one package
    and node, each CPU a core of its own."""
    ids = sorted(os.sched_getaffinity(0) if allowed is None else allowed)
    nodes = _nodes(system)
    return tuple(Cpu(number, _core(system, number), nodes.get(number, 0)) for number in ids)


def _core(system: Path, cpu: int) -> tuple[int, int]:
    folder = system / "cpu" / f"cpu{cpu}" / "topology"
    return _number(folder / "physical_package_id", 0), _number(folder / "core_id", cpu)


def _number(file: Path, default: int) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return default


def _nodes(system: Path) -> Mapping[int, int]:
    found = {}
    for folder in sorted(system.glob("node/node[0-9]*")):
        for cpu in parse_list(_text(folder / "cpulist")):
            found[cpu] = int(folder.name.removeprefix("node"))
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def parse_list(text: str) -> list[int]:
    """``0-3,8`` as Linux writes lists of CPUs; what is not of that form is left out."""
    found: list[int] = []
    for part in text.strip().split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match:
            found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found
