"""A plan that fails is tried again, then apart, until the one to blame is alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvern.sched.lanes import Quarantine


def search(members: tuple[int, ...], bad: set[int], retries: int) -> tuple[set[int], int]:
    """Run plans over whatever the quarantine allows until none fails; returns who was blamed, and the plans."""
    it, blamed, plans = Quarantine(retries), set(), 0
    while True:
        alive = [key for key in members if key not in blamed]
        inside = tuple(key for key in alive if it.group is None or key in it.group)
        if not inside:
            if it.group is None:
                return blamed, plans
            it.skip()
            continue
        plans += 1
        if not bad.intersection(inside):
            whole = it.group is None
            it.passed(inside)
            if whole:
                return blamed, plans
            continue
        found = it.failed(inside)
        if found is not None:
            blamed.add(found)


@given(st.integers(1, 20), st.sets(st.integers(0, 19), max_size=3), st.integers(0, 3))
def test_exactly_the_bad_ones_are_blamed(count: int, bad: set[int], retries: int) -> None:
    members = tuple(range(count))
    blamed, plans = search(members, bad & set(members), retries)
    assert blamed == bad & set(members)
    assert plans <= 60 + 10 * len(bad)


def test_a_failure_that_goes_away_blames_nobody() -> None:
    it = Quarantine(1)
    assert it.failed((1, 2)) is None
    assert it.group is None
    assert not it.trusted
    it.passed((1, 2))
    assert it.trusted


@pytest.mark.parametrize("retries", [0, 1])
def test_failures_of_empty_plans_are_not_tried_for_ever(retries: int) -> None:
    it = Quarantine(retries)
    for _ in range(5):
        assert it.failed(()) is None
    assert it.group is None
    assert not it.trusted


def test_members_left_out_of_a_trial_are_tried_later() -> None:
    it = Quarantine(0)
    it.failed((1, 2, 3, 4))
    assert it.group == {1, 2}
    it.passed((1,))
    assert it.group == {2}
    it.passed((2,))
    assert it.group == {3, 4}
