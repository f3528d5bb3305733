"""Tokens served to each tenant, over its weight."""

from __future__ import annotations

import math
from collections.abc import Iterable

from kvern.sched.sequence import Sequence


class Shares:
    """Counts each token of a sequence once: neither cached ones nor those recomputed after a preemption.

    A tenant that comes back after idling starts at the least share of those present, so idleness earns no credit.
    Tenants without live sequences are kept only while their share is above that least one; when nobody is there,
    all is forgotten.
    """

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._live: dict[str, int] = {}
        self._marks: dict[int, int] = {}  # sequence -> tokens counted

    def arrive(self, sequence: Sequence, running: Iterable[Sequence]) -> None:
        """It waits from now on. ``running`` are all sequences that compute."""
        tenant = sequence.request.tenant
        if tenant not in self._live:
            for other in running:
                self.note(other)
            floor = min((self._served[name] for name in self._live), default=math.inf)
            self._served = {name: s for name, s in self._served.items() if name in self._live or s > floor}
            floor = floor if self._live else 0.0
            self._served[tenant] = max(self._served.get(tenant, 0.0), floor)
        self._live[tenant] = self._live.get(tenant, 0) + 1

    def enter(self, sequence: Sequence) -> None:
        """It starts to compute; what it found in the cache is not counted."""
        self._marks.setdefault(sequence.id, sequence.computed)

    def leave(self, sequence: Sequence) -> None:
        """It is over."""
        self.note(sequence)
        self._marks.pop(sequence.id, None)
        tenant = sequence.request.tenant
        self._live[tenant] -= 1
        if not self._live[tenant]:
            del self._live[tenant]

    def read(self, running: Iterable[Sequence]) -> dict[str, float]:
        """Shares of tenants with live sequences; the work that running ones still have to do is counted whole."""
        running = list(running)
        for sequence in running:
            self.note(sequence)
        shares = {tenant: self._served[tenant] for tenant in self._live}
        for sequence in running:
            shares[sequence.request.tenant] += (len(sequence.known) - sequence.computed) / _weight(sequence)
        return shares

    def note(self, sequence: Sequence) -> None:
        """Count what it computed since the last time."""
        mark = self._marks.get(sequence.id)
        if mark is not None and sequence.computed > mark:
            self._served[sequence.request.tenant] += (sequence.computed - mark) / _weight(sequence)
            self._marks[sequence.id] = sequence.computed


def _weight(sequence: Sequence) -> float:
    return max(sequence.request.weight, 1e-6)
