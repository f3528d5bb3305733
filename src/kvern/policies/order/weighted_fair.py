"""Weighted fair between tenants in tokens served; first come, first served within one.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024), with each tenant's
waiting prompts charged in advance so that one round of admissions is fair, too.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from kvern.core.views import Order, SequenceView, View


def arrange(view: View) -> Iterator[SequenceView]:
    """Those that lost their memory first; then always the next of the tenant that was served least."""
    yield from view.preempted()
    shares = view.shares()
    heap: list[tuple[float, int, int, SequenceView, Iterator[SequenceView]]] = []
    for tenant, queue in view.queues().items():
        line = iter(tuple(queue.values()))
        first = next(line)
        heap.append((shares[tenant], first.rank[1], first.id, first, line))
    heapq.heapify(heap)
    while heap:
        share, _, _, sequence, line = heap[0]
        yield sequence
        following = next(line, None)
        if following is None:
            heapq.heappop(heap)
            continue
        charged = share + sequence.length / max(sequence.request.weight, 1e-6)
        heapq.heapreplace(heap, (charged, following.rank[1], following.id, following, line))


def weighted_fair() -> Order:
    """The default order."""
    return Order("weighted_fair", arrange)
