"""Repetitions, the table that shows them, and the generated section of docs/performance.md."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BEGIN = "<!-- engine.py writes from here -->"
END = "<!-- to here -->"


@dataclass(frozen=True)
class Measured:
    """Repetitions of one number, in the order they were taken."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        digits = 0 if self.median >= 100 else 1 if self.median >= 10 else 2
        low, high = min(self.values), max(self.values)
        return f"{self.median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


@dataclass
class Row:
    """One thing measured: ours, and each of the peer's settings; ``best`` is max for rates and min for seconds."""

    name: str
    unit: str
    ours: Measured | None = None
    peer: dict[str, Measured] = field(default_factory=dict)
    best: Callable[..., float] = max

    def ratio(self) -> float | None:
        """Ours against the peer's best setting, above 1 when ours is better."""
        if self.ours is None or not self.peer:
            return None
        peer = self.best(measured.median for measured in self.peer.values())
        return self.ours.median / peer if self.best is max else peer / self.ours.median

    def as_json(self) -> dict[str, Any]:
        peer = {name: list(measured.values) for name, measured in self.peer.items()}
        ours = None if self.ours is None else list(self.ours.values)
        return {"name": self.name, "unit": self.unit, "ours": ours, "llama.cpp": peer, "ratio": self.ratio()}


def alternate(
    repeats: int, ours: Callable[[], float], peer: Callable[[], dict[str, float]] | None
) -> tuple[Measured, dict[str, Measured]]:
    """Take turns, so that a slow spell of the machine falls on both; never both at once."""
    mine: list[float] = []
    theirs: dict[str, list[float]] = {}
    for _ in range(repeats):
        mine.append(ours())
        for name, value in (peer() if peer is not None else {}).items():
            theirs.setdefault(name, []).append(value)
    return Measured(tuple(mine)), {name: Measured(tuple(values)) for name, values in theirs.items()}


def markdown(rows: list[Row]) -> str:
    names = sorted({name for row in rows for name in row.peer})
    head = ["what", "unit", "kvern", *(f"llama.cpp, {name}" for name in names), "kvern / best of llama.cpp"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        ratio = row.ratio()
        cells = [row.name, row.unit, str(row.ours) if row.ours else "-"]
        cells += [str(row.peer[name]) if name in row.peer else "-" for name in names]
        cells.append("-" if ratio is None else f"{ratio:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_section(path: Path, text: str) -> None:
    """Replace what stands between the markers. Raises ValueError when they are not there once each."""
    page = path.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{path}: the markers {BEGIN!r} and {END!r} must stand in it once each")
    before, rest = page.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{text.strip()}\n{END}{rest.split(END)[1]}", encoding="utf-8")
