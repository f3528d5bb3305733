"""Memory comes from the lowest-ranked, who is recomputed later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvern.core.views import Preemption, SequenceView, View


def victims(below: Sequence[SequenceView], pages: int, view: View) -> Iterable[SequenceView]:  # noqa: ARG001
    """Lowest first."""
    return sorted(below, key=lambda sequence: sequence.rank, reverse=True)


def lowest_rank() -> Preemption:
    return Preemption("lowest_rank", victims)
