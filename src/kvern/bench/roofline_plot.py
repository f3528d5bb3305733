"""A roofline plot as one self-contained SVG: ceilings as lines, kernels as points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from kvern.bench.ceilings import Ceilings
from kvern.bench.limits import CaseLimits, Part

WIDTH, HEIGHT = 960, 600
LEFT, RIGHT, TOP, BOTTOM = 80, 250, 50, 60
COLOURS = ("#0b6e99", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#be123c")


def roofline_svg(ceilings: Ceilings, limits: Sequence[CaseLimits], title: str) -> str:
    """Operations per byte against operations per second, both logarithmic; parts without bytes or operations are
    left out. Returns the text of the file."""
    parts = [part for case in limits for part in case.parts if part.bytes and part.operations and part.ms]
    axes = _Axes(parts, ceilings)
    body = [*axes.frame(title), *_roofs(axes, ceilings), *_points(axes, limits)]
    style = "font-family:system-ui,sans-serif;font-size:12px;fill:#222"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" style="{style}" role="img">'
        f"<title>{escape(title)}</title>"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{"".join(body)}</svg>\n'
    )


class _Axes:
    """Powers of ten around what is shown."""

    def __init__(self, parts: Iterable[Part], ceilings: Ceilings) -> None:
        intensities = [part.intensity for part in parts] or [1.0]
        rates = [part.operations / part.ms * 1e3 for part in parts]
        peaks = [rate.median for rate in ceilings.operations.values()]
        self.x_low, self.x_high = _decades([*intensities, 1.0, 100.0])
        self.y_low, self.y_high = _decades([*rates, *peaks])

    def x(self, intensity: float) -> float:
        share = (math.log10(intensity) - self.x_low) / (self.x_high - self.x_low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, rate: float) -> float:
        share = (math.log10(rate) - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def frame(self, title: str) -> list[str]:
        out = [f'<text x="{LEFT}" y="26" font-size="15" font-weight="600">{escape(title)}</text>']
        for power in range(self.x_low, self.x_high + 1):
            at = self.x(10.0**power)
            out.append(_line(at, TOP, at, HEIGHT - BOTTOM, "#ddd"))
            out.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{10.0**power:g}</text>')
        for power in range(self.y_low, self.y_high + 1):
            at = self.y(10.0**power)
            out.append(_line(LEFT, at, WIDTH - RIGHT, at, "#ddd"))
            label = f"{10.0 ** (power - 9):g}"
            out.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        out.append(f'<text x="{middle}" y="{HEIGHT - 18}" text-anchor="middle">operations per byte read</text>')
        out.append(
            f'<text transform="translate(20 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
            "Gop/s (a multiply and an add are two)</text>"
        )
        return out


def _decades(values: Sequence[float]) -> tuple[int, int]:
    return math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashed}/>'


def _roofs(axes: _Axes, ceilings: Ceilings) -> list[str]:
    out = []
    top = max(rate.median for rate in ceilings.operations.values())
    for size, rate in ceilings.read.items():
        start = max(10.0**axes.x_low, 10.0**axes.y_low / rate.median)
        end = min(10.0**axes.x_high, top / rate.median)
        if start >= end:
            continue
        out.append(_line(axes.x(start), axes.y(start * rate.median), axes.x(end), axes.y(end * rate.median), "#555"))
        label = f"{rate.median / 1e9:.0f} GB/s ({_size(size)} a thread)"
        x, y = axes.x(start), axes.y(start * rate.median)
        out.append(f'<text x="{x + 6:.1f}" y="{y - 6:.1f}" fill="#555" font-size="10">{label}</text>')
    for kind, rate in ceilings.operations.items():
        y = axes.y(rate.median)
        out.append(_line(axes.x(10.0**axes.x_low), y, axes.x(10.0**axes.x_high), y, "#999", "6 4"))
        label = f"{kind}: {rate.median / 1e9:.0f}"
        out.append(
            f'<text x="{WIDTH - RIGHT - 4}" y="{y - 5:.1f}" text-anchor="end" fill="#555">{escape(label)}</text>'
        )
    return out


def _points(axes: _Axes, limits: Sequence[CaseLimits]) -> list[str]:
    out = []
    for index, case in enumerate(limits):
        colour = COLOURS[index % len(COLOURS)]
        y = TOP + 18 + 44 * index
        out.append(f'<circle cx="{WIDTH - RIGHT + 24}" cy="{y - 4}" r="6" fill="{colour}"/>')
        out.append(f'<text x="{WIDTH - RIGHT + 38}" y="{y}">{escape(case.case.name)}</text>')
        reached = f"{case.step_ms:.2f} ms, {100 * case.fraction:.0f} % of the floor"
        out.append(f'<text x="{WIDTH - RIGHT + 38}" y="{y + 16}" fill="#555">{reached}</text>')
        for part in case.parts:
            if part.bytes and part.operations and part.ms:
                out.append(_point(axes, part, colour))
    return out


def _point(axes: _Axes, part: Part, colour: str) -> str:
    x, y = axes.x(part.intensity), axes.y(part.operations / part.ms * 1e3)
    hint = f"{part.operation} ({part.unit} {part.format}): {part.ms:.3f} ms, {100 * part.fraction:.0f} % of its floor"
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}" fill-opacity="0.8">'
        f"<title>{escape(hint)}</title></circle>"
    )


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
