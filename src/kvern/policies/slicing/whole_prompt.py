"""A prompt in one slice; only one that no plan can hold is cut."""

from __future__ import annotations

from kvern.core.views import SequenceView, Slicing, View


def cut(sequence: SequenceView, room: int, view: View) -> tuple[int, int]:
    """All of its work, or nothing while there is not room enough."""
    span = sequence.open
    wanted = sequence.work if span is None else span.end - span.begin
    tokens = min(wanted, view.config.max_step_tokens)
    if tokens > room and not _must_cut(sequence, room, view):
        return 0, view.config.units
    return min(tokens, room), view.config.units


def _must_cut(sequence: SequenceView, room: int, view: View) -> bool:
    """Longer than any plan: take what is left beside the running ones rather than wait for an empty plan."""
    return sequence.open is None and sequence.work > view.config.max_step_tokens - len(view.running()) and room > 0


def whole_prompt() -> Slicing:
    return Slicing("whole_prompt", cut)
