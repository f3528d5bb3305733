"""First come, first served, whoever asks."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from kvern.core.views import Order, SequenceView, View


def arrange(view: View) -> Iterator[SequenceView]:
    """Those that lost their memory first; then by arrival."""
    yield from view.preempted()
    lines = [tuple(queue.values()) for queue in view.queues().values()]
    yield from heapq.merge(*lines, key=lambda sequence: sequence.rank[1])


def first_come() -> Order:
    return Order("first_come", arrange)
