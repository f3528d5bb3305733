"""Whatever fits: a long prompt is cut into chunks, all units at once."""

from __future__ import annotations

from kvern.core.views import SequenceView, Slicing, View


def chunked(most: int | None = None) -> Slicing:
    """``most``: tokens of one chunk; by default what the plan has room for."""

    def cut(sequence: SequenceView, room: int, view: View) -> tuple[int, int]:
        span = sequence.open
        if span is not None:
            tokens = span.end - span.begin
            return (tokens if tokens <= room else 0), view.config.units
        return min(sequence.work, room, most or room), view.config.units

    return Slicing("chunked", cut)
