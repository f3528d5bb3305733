"""Pages for a slice: from the free ones, or from sequences ranked below the one in need; otherwise it waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain

from kvern.core.views import Preemption, View
from kvern.sched.ledger import Claim, Ledger
from kvern.sched.sequence import Sequence, State


def secure(
    ledger: Ledger, preemption: Preemption, view: View, sequence: Sequence, need: int, rob: Callable[[Sequence], None]
) -> list[int] | None:
    """``need`` pages for ``sequence``, or None: it waits, and a claim keeps the next free pages from lower ranks.

    ``rob`` takes the memory of one sequence; pages under a step in flight come only when that is reported.
    """
    coming = False
    if need > _spare(ledger, sequence):
        coming = _make_room(ledger, preemption, view, sequence, need, rob)
    if need > _spare(ledger, sequence):
        if coming or sequence.state is State.RUNNING:
            _claim(ledger, sequence, need)
        return None
    ledger.drop_claim(sequence)
    return ledger.pool.reserve(need)


def _spare(ledger: Ledger, sequence: Sequence) -> int:
    """Available pages that no higher-ranked sequence waits for."""
    claim = ledger.claim
    if claim is None or claim.sequence is sequence or claim.sequence.rank > sequence.rank:
        return ledger.pool.available
    return ledger.pool.available - claim.pages


def _claim(ledger: Ledger, sequence: Sequence, need: int) -> None:
    claim = ledger.claim
    if claim is None or claim.sequence.rank >= sequence.rank:
        ledger.claim = Claim(sequence, need)


def _make_room(
    ledger: Ledger, preemption: Preemption, view: View, sequence: Sequence, need: int, rob: Callable[[Sequence], None]
) -> bool:
    """Preempt as few as the policy's order allows, and nobody if that would not be enough. True: enough will come."""
    wanted = need - _spare(ledger, sequence)
    coming = [other for other in ledger.running.values() if other.state is State.YIELDING]
    freed = _Freed(ledger, chain(coming, ledger.draining.values()))
    if freed.pages >= wanted:
        return True
    below = [
        other
        for other in ledger.running.values()
        if other.state is State.RUNNING and other.rank > sequence.rank and not ledger.immune(other)
    ]
    if _Freed(ledger, chain(coming, ledger.draining.values(), below)).pages < wanted:
        return False
    eligible = {other.id: other for other in below}
    lowest_first = sorted(below, key=lambda other: other.rank, reverse=True)
    for choice in chain(preemption.victims(below, wanted, view), lowest_first):
        victim = eligible.pop(choice.id, None)
        if victim is None:
            continue
        freed.add(victim)
        rob(victim)
        if freed.pages >= wanted:
            break
    return True


class _Freed:
    """Counts pages that nobody else holds once these sequences are gone."""

    def __init__(self, ledger: Ledger, sequences: Iterable[Sequence]) -> None:
        self._pool = ledger.pool
        self._seen: Counter[int] = Counter()
        self.pages = 0
        for sequence in sequences:
            self.add(sequence)

    def add(self, sequence: Sequence) -> None:
        """Call before its pages are released."""
        for page in sequence.view.pages():
            self._seen[page] += 1
            self.pages += self._seen[page] == self._pool.references(page)
