"""Each token is counted once, per weight, and idleness earns nothing."""

from __future__ import annotations

from kvern.core.request import Request, Sampling
from kvern.sched.sequence import Sequence
from kvern.sched.shares import Shares


def sequence(key: int, tenant: str, prompt: int = 10, weight: float = 1.0) -> Sequence:
    item = Request(key, tuple(range(prompt)), Sampling(max_tokens=5), tenant=tenant, weight=weight)
    return Sequence(item, 4, (0.0, key))


def running(it: Shares, *items: Sequence) -> None:
    for item in items:
        it.arrive(item, items)
        it.enter(item)


def test_running_prompts_count_whole_and_by_weight() -> None:
    it, one, two = Shares(), sequence(1, "a"), sequence(2, "b", weight=2.0)
    running(it, one, two)
    one.computed = 4
    assert it.read([one, two]) == {"a": 10.0, "b": 5.0}


def test_cached_tokens_are_free_and_recomputed_ones_are_counted_once() -> None:
    it, one = Shares(), sequence(1, "a")
    it.arrive(one, [])
    one.computed = 6
    it.enter(one)
    one.computed = 10
    assert it.read([one]) == {"a": 4.0}
    it.note(one)
    one.computed = 0
    assert it.read([]) == {"a": 4.0}
    it.enter(one)
    one.computed = 9
    it.note(one)
    assert it.read([]) == {"a": 4.0}


def test_a_tenant_that_returns_starts_where_the_others_are() -> None:
    it, one = Shares(), sequence(1, "a")
    running(it, one)
    one.computed = 10
    it.arrive(sequence(2, "late"), [one])
    assert it.read([one]) == {"a": 10.0, "late": 10.0}


def test_what_a_tenant_owes_is_kept_while_others_are_there_and_forgotten_when_nobody_is() -> None:
    it, one, two = Shares(), sequence(1, "a"), sequence(2, "b")
    running(it, one, two)
    one.computed = 10
    it.leave(one)
    it.arrive(sequence(3, "a"), [two])
    assert it.read([])["a"] == 10.0
    it.leave(sequence(3, "a"))
    it.leave(two)
    it.arrive(sequence(4, "a"), [])
    assert it.read([]) == {"a": 0.0}
    assert it._served == {"a": 0.0}
