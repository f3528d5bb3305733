"""What the ledger refuses, and what its audit finds."""

from __future__ import annotations

import pytest

from kvern.core.errors import InvariantBroken
from kvern.core.limits import EngineConfig
from kvern.core.request import Request, Sampling
from kvern.sched.ledger import Ledger
from kvern.sched.sequence import Sequence


def ledger() -> tuple[Ledger, Sequence]:
    it = Ledger(EngineConfig(pages=8, units=2, max_context=40, page_tokens=4), b"")
    sequence = it.arrive(Request(1, (1, 2, 3), Sampling(max_tokens=4)))
    it.enter(sequence)
    return it, sequence


def test_a_sequence_can_lose_its_memory_only_while_it_runs() -> None:
    it, sequence = ledger()
    it.preempt(sequence)
    with pytest.raises(InvariantBroken, match="cannot lose"):
        it.preempt(sequence)


def test_the_audit_finds_sequences_that_are_nowhere() -> None:
    it, sequence = ledger()
    it.audit()
    del it.running[sequence.id]
    with pytest.raises(InvariantBroken, match="neither runs nor waits"):
        it.audit()


def test_the_audit_finds_pages_kept_for_nothing() -> None:
    it, sequence = ledger()
    pages = it.pool.reserve(1)
    assert pages is not None
    it.grant(sequence, pages)
    it.audit()
    it.pool.keep(pages[0])
    with pytest.raises(InvariantBroken, match="0 pages are indexed, and 1 kept"):
        it.audit()


def test_the_audit_finds_miscounted_flights() -> None:
    it, sequence = ledger()
    sequence.flights = 1
    with pytest.raises(InvariantBroken, match="0 plans in flight"):
        it.audit()


def test_sequences_are_ordered_by_rank() -> None:
    it, first = ledger()
    second = it.arrive(Request(2, (1,), Sampling()))
    it.set_rank(second, -1.0)
    assert it.highest_first() == [second, first]
