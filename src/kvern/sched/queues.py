"""Sequences that wait for memory."""

from __future__ import annotations

from kvern.sched.sequence import Sequence


class Queue:
    """Waiting sequences: those that never ran, by tenant in order of arrival; and those that lost their memory."""

    def __init__(self) -> None:
        self.tenants: dict[str, dict[int, Sequence]] = {}
        self._preempted: dict[int, Sequence] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count + len(self._preempted)

    def arrive(self, sequence: Sequence) -> None:
        self.tenants.setdefault(sequence.request.tenant, {})[sequence.id] = sequence
        self._count += 1

    def come_back(self, sequence: Sequence) -> None:
        self._preempted[sequence.id] = sequence

    def remove(self, sequence: Sequence) -> None:
        if self._preempted.pop(sequence.id, None) is not None:
            return
        tenant = sequence.request.tenant
        del self.tenants[tenant][sequence.id]
        self._count -= 1
        if not self.tenants[tenant]:
            del self.tenants[tenant]

    def preempted(self) -> list[Sequence]:
        """Highest-ranked first."""
        return sorted(self._preempted.values(), key=lambda sequence: sequence.rank)
