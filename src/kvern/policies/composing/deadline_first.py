"""The earliest deadline first, running or waiting; without a deadline last, by rank."""

from __future__ import annotations

from kvern.core.views import Builder, Composing, SequenceView


def urgency(sequence: SequenceView) -> tuple[float, tuple[float, int]]:
    """Smaller is more urgent. Deadlines in seconds on the engine's clock."""
    deadline = sequence.request.deadline_s
    return (float("inf") if deadline is None else deadline, sequence.rank)


def compose(builder: Builder) -> None:
    """Everyone in order of urgency; one that is refused does not hold up the others."""
    for sequence in sorted([*builder.running(), *builder.waiting()], key=urgency):
        if builder.room <= 0:
            return
        builder.offer(sequence)


def deadline_first() -> Composing:
    return Composing("deadline_first", compose)
