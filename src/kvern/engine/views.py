"""The engine as policies see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvern.core.limits import EngineConfig
from kvern.core.plan import Plan
from kvern.core.views import SequenceView
from kvern.sched.ledger import Ledger


class LedgerView:
    """A ``kvern.core.views.View`` over a ledger. ``now`` and ``measured`` are set by the core, from events."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.now = 0.0
        self.measured: dict[str, float] = {}

    @property
    def config(self) -> EngineConfig:
        return self._ledger.config

    @property
    def pages_available(self) -> int:
        return self._ledger.pool.available

    def running(self) -> Sequence[SequenceView]:
        return tuple(self._ledger.running.values())

    def preempted(self) -> Sequence[SequenceView]:
        return self._ledger.queue.preempted()

    def queues(self) -> Mapping[str, Mapping[int, SequenceView]]:
        return self._ledger.queue.tenants

    def shares(self) -> Mapping[str, float]:
        return self._ledger.shares.read(self._ledger.running.values())

    def pages_short(self, sequence: SequenceView, tokens: int) -> int:
        """Pages to be newly used: those not held, and shared ones that are only cached now."""
        ledger = self._ledger
        own = ledger.live[sequence.id]
        if own.id in ledger.running:
            return max(0, ledger.config.pages_for(tokens) - own.view.count)
        hits = ledger.hits(own)
        needed = max(0, ledger.config.pages_for(tokens) - len(hits))
        return needed + sum(ledger.pool.is_cached(page) for page in hits)

    def plans(self) -> Sequence[Plan]:
        return tuple(flight.plan for lane in self._ledger.lanes for flight in lane.flights)

    def find(self, sequence: int) -> SequenceView | None:
        return self._ledger.live.get(sequence)
