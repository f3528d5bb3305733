"""Who gets pages when they are short."""

from __future__ import annotations

from kvern.core.limits import EngineConfig
from kvern.core.request import Request, Sampling
from kvern.core.views import Preemption
from kvern.engine.views import LedgerView
from kvern.sched.ledger import Ledger
from kvern.sched.memory import secure
from kvern.sched.sequence import Sequence, State


class Bank:
    """A ledger of 10 pages with sequences 1, 2, 3 that hold 3, 2 and 2 of them, ranked in this order."""

    def __init__(self, max_losses: int = 4) -> None:
        config = EngineConfig(pages=10, units=2, max_context=40, page_tokens=4, max_losses=max_losses)
        self.ledger = Ledger(config, b"")
        self.robbed: list[int] = []
        for key, pages in ((1, 3), (2, 2), (3, 2)):
            sequence = self.ledger.arrive(Request(key, tuple(range(4 * pages)), Sampling(max_tokens=9)))
            self.ledger.enter(sequence)
            self.ledger.grant(sequence, self.ledger.pool.reserve(pages) or [])

    def __getitem__(self, key: int) -> Sequence:
        return self.ledger.live[key]

    def ask(self, key: int, need: int) -> list[int] | None:
        def rob(victim: Sequence) -> None:
            self.robbed.append(victim.id)
            self.ledger.preempt(victim)

        nobody = Preemption("nobody", lambda below, pages, view: ())
        view = LedgerView(self.ledger)
        pages = secure(self.ledger, nobody, view, self[key], need, rob)
        if pages:
            self.ledger.grant(self[key], pages)
        self.ledger.audit()
        return pages


def test_free_pages_rob_nobody() -> None:
    bank = Bank()
    assert len(bank.ask(3, 3) or []) == 3
    assert bank.robbed == []


def test_as_few_as_needed_lose_and_the_lowest_first() -> None:
    bank = Bank()
    assert len(bank.ask(1, 5) or []) == 5
    assert bank.robbed == [3]
    assert bank[3].state is State.WAITING


def test_nobody_loses_when_it_would_not_be_enough() -> None:
    bank = Bank()
    assert bank.ask(2, 6) is None
    assert bank.robbed == []


def test_the_lowest_waits() -> None:
    bank = Bank()
    assert bank.ask(3, 4) is None
    assert bank.robbed == []


def test_who_waits_has_a_claim_on_the_next_pages_against_those_below() -> None:
    bank = Bank()
    assert bank.ask(2, 6) is None
    assert bank.ask(3, 1) is None  # three are free, but they are promised
    assert len(bank.ask(1, 1) or []) == 1  # not to those above
    bank.ledger.end(bank[1])
    assert len(bank.ask(2, 6) or []) == 6
    assert bank.ledger.claim is None


def test_a_claim_ends_with_its_sequence() -> None:
    bank = Bank()
    assert bank.ask(2, 6) is None
    bank.ledger.end(bank[2])
    assert len(bank.ask(3, 5) or []) == 5


def test_the_claim_of_a_higher_rank_stands() -> None:
    bank = Bank()
    assert bank.ask(2, 6) is None
    assert bank.ask(3, 4) is None
    assert bank.ledger.claim is not None
    assert bank.ledger.claim.sequence.id == 2
    bank.ledger.set_rank(bank[3], -1.0)
    bank.robbed.clear()
    assert bank.ask(3, 9) is None
    assert bank.ledger.claim.sequence.id == 3


def test_pages_under_a_step_in_flight_come_later() -> None:
    bank = Bank()
    bank[3].flights = 1
    bank.ledger.audit = lambda: None  # type: ignore[method-assign]
    assert bank.ask(1, 5) is None
    assert bank[3].state is State.YIELDING
    assert bank.ask(1, 5) is None
    assert bank.robbed == [3]  # its pages will do: no second victim
    assert bank.ask(2, 1) is None  # promised to 1
    bank[3].flights = 0
    bank.ledger.settle_state(bank[3])
    assert len(bank.ask(1, 5) or []) == 5


def test_who_lost_often_enough_is_spared() -> None:
    bank = Bank(max_losses=0)
    assert bank.ask(1, 5) is None
    assert bank.robbed == []
