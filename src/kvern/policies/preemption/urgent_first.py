"""A running plan stops at its next unit boundary when a request with an earlier deadline arrives.

Operator-level preemption as in FlowPrefill; what was computed stays as open spans, and is resumed. To be used with a
composing policy that puts the urgent one first. A plan is left alone when all it holds is at least as urgent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kvern.core.events import Arrived, Event, Interrupt
from kvern.core.plan import Plan
from kvern.core.views import Preemption, SequenceView, View


def victims(below: Sequence[SequenceView], pages: int, view: View) -> Iterable[SequenceView]:  # noqa: ARG001
    """The latest deadline first, then the lowest-ranked."""
    return sorted(below, key=lambda sequence: (_deadline(sequence), sequence.rank), reverse=True)


def on(event: Event, view: View) -> Sequence[Interrupt]:
    """Interrupt plans in which everyone can wait longer than the one that arrived."""
    if not isinstance(event, Arrived) or event.request.deadline_s is None:
        return ()
    if view.find(event.request.id) is None:
        return ()  # refused
    deadline = event.request.deadline_s
    plans = [plan for plan in view.plans() if plan.interruptible and _can_wait(plan, deadline, view)]
    return [Interrupt(plan.lane, plan.step) for plan in plans]


def _can_wait(plan: Plan, deadline: float, view: View) -> bool:
    inside = [view.find(piece.sequence) for piece in plan.slices]
    return all(sequence is None or _deadline(sequence) > deadline for sequence in inside)


def _deadline(sequence: SequenceView) -> float:
    deadline = sequence.request.deadline_s
    return float("inf") if deadline is None else deadline


def urgent_first() -> Preemption:
    return Preemption("urgent_first", victims, on, interruptible=True)
