"""What a run of the quantiser found, as JSON, as lines for a terminal, and as one self-contained HTML page."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from kvern.quantise.measure import Quality, Speed


@dataclass(frozen=True, slots=True)
class MatrixLine:
    """One matrix: its format, stored bytes, and the squared error of its outputs over their square."""

    name: str
    format: str
    elements: int
    nbytes: int
    error: float


@dataclass(frozen=True, slots=True)
class Report:
    """``base`` is what the model is compared with. Sizes in bytes; speeds None where they were not measured."""

    source: str
    base: str
    recipe: dict[str, Any]
    matrices: tuple[MatrixLine, ...]
    file_bytes: int
    source_bytes: int
    quality: Quality
    speed: Speed | None = None
    base_speed: Speed | None = None
    notes: tuple[str, ...] = ()
    search: dict[str, Any] = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, scales included, over all matrices."""
        return 8 * sum(m.nbytes for m in self.matrices) / sum(m.elements for m in self.matrices)

    def as_json(self) -> dict[str, Any]:
        """Everything, ready for ``json.dumps``."""
        found = asdict(self)
        found["bits_per_weight"] = self.bits_per_weight
        found["quality"]["perplexity_ratio"] = self.quality.perplexity_ratio
        return found

    def summary(self) -> dict[str, Any]:
        """The few numbers that the quantised file carries inside."""
        quality = self.quality
        return {
            "compared_with": self.base,
            "scored_tokens": quality.positions,
            "divergence_nats": round(quality.divergence, 6),
            "same_first_token": round(quality.agreement, 4),
            "perplexity_ratio": round(quality.perplexity_ratio, 5),
            "bits_per_weight": round(self.bits_per_weight, 4),
        }

    def lines(self) -> list[str]:
        """For a terminal."""
        quality = self.quality
        found = [
            f"size          {self.file_bytes / 1e6:.1f} MB (was {self.source_bytes / 1e6:.1f}), "
            f"{self.bits_per_weight:.2f} bits per weight",
            f"mean KL       {quality.divergence:.4f} nats from {self.base}, over {quality.positions} tokens",
            f"top-1         {quality.agreement:.1%} the same first token",
            f"perplexity    {quality.perplexity:.3f}, {quality.perplexity_ratio:.4f} times the unquantised",
        ]
        for label, speed in (("speed", self.speed), ("speed before", self.base_speed)):
            if speed is not None:
                found.append(f"{label:<13} {speed.decode:.0f} tokens/s decode, {speed.prefill:.0f} prefill")
        return found + [f"note          {note}" for note in self.notes]


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "pre{background:#f4f4f4;padding:1rem;overflow:auto}svg{width:100%;height:auto}text{font:10px system-ui}"
    "rect:hover{opacity:.6}"
)
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


def as_html(report: Report) -> str:
    """A page with the summary and a bar for the error of every matrix, coloured by format. No script, no network."""
    formats = list(dict.fromkeys(matrix.format for matrix in report.matrices))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(formats)}
    legend = " ".join(
        f'<span style="color:{colour}">&#9632; {escape(name)}</span>' for name, colour in colours.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(report.source)}, quantised</title>'
        f"<style>{_STYLE}</style><h1>{escape(report.source)}</h1><pre>{escape(chr(10).join(report.lines()))}</pre>"
        f"<h2>Error of each matrix</h2><p>Squared error of its outputs over their square, on the calibration text. "
        f"{legend}</p>{_bars(report, colours)}</html>\n"
    )


def _bars(report: Report, colours: dict[str, str]) -> str:
    lines = report.matrices
    top = max((line.error for line in lines), default=0.0) or 1.0
    width, height, left = 1000, 260, 60
    step = (width - left) / max(len(lines), 1)
    bars = []
    for index, line in enumerate(lines):
        tall = max(line.error / top * (height - 20), 0.5)
        title = f"{line.name}: {line.error:.2e}, {line.format}, {8 * line.nbytes / line.elements:.2f} bits"
        bars.append(
            f'<rect x="{left + index * step:.2f}" y="{height - tall:.2f}" width="{max(step * 0.85, 0.5):.2f}" '
            f'height="{tall:.2f}" fill="{colours[line.format]}"><title>{escape(title)}</title></rect>'
        )
    axis = (
        f'<line x1="{left}" y1="{height}" x2="{width}" y2="{height}" stroke="#999"/>'
        f'<text x="0" y="20">{top:.2e}</text><text x="0" y="{height}">0</text>'
    )
    box = f'viewBox="0 0 {width} {height + 10}" role="img" aria-label="error by matrix"'
    return f"<svg {box}>{axis}{''.join(bars)}</svg>"
