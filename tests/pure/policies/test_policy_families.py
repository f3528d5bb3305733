"""Every policy of the table, and what each promises."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from choices import make, policies
from core_rig import Rig, request

from kvern.core.limits import EngineConfig
from kvern.policies.table import TABLE

ALL = [(family, name) for family, table in TABLE.items() for name in table]


def rig(names: dict[str, Any], **more: Any) -> Rig:
    base: dict[str, Any] = {"pages": 40, "units": 4, "max_context": 40, "page_tokens": 4, "max_step_tokens": 16}
    return Rig(EngineConfig(**{**base, **more}), policies(**names))


@pytest.mark.parametrize(("family", "name"), ALL)
def test_a_policy_is_a_frozen_record_that_bears_its_name(family: str, name: str) -> None:
    policy = make(family, name)
    assert policy.name == name
    assert policy.claims
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.name = "other"


def order_of_entry(names: dict[str, Any], arrivals: list[tuple[str, float]], count: int) -> list[str]:
    """Tenants in the order in which their requests first run, one seat at a time."""
    it = rig(names, max_running=1)
    for key, (tenant, weight) in enumerate(arrivals, 1):
        it.arrive(request(key, 4, 4, tenant=tenant, weight=weight))
    entered: list[str] = []
    seen: set[int] = set()
    while it.flights[0]:
        for start in it.flights[0][0].starts:
            if start.sequence not in seen:
                seen.add(start.sequence)
                entered.append(it.requests[start.sequence].tenant)
        it.step()
    it.check_done()
    return entered[:count]


def test_a_tenant_with_many_requests_does_not_hold_up_another() -> None:
    arrivals = [("many", 1.0)] * 10 + [("few", 1.0)] * 3
    assert order_of_entry({}, arrivals, 6).count("few") == 3
    assert order_of_entry({"order": "first_come"}, arrivals, 6) == ["many"] * 6


def test_service_follows_the_weights() -> None:
    arrivals = [("light", 1.0), ("heavy", 3.0)] * 12
    assert 5 <= order_of_entry({}, arrivals, 8).count("heavy") <= 7


def test_one_round_of_admissions_is_fair_too() -> None:
    it = rig({}, max_running=6, max_step_tokens=40)
    it.arrive(request(1, 2, 2, tenant="a"))
    for key in range(2, 12):
        it.arrive(request(key, 4, 4, tenant="a" if key < 8 else "b"))
    it.step()
    tenants = [it.requests[start.sequence].tenant for start in it.flights[0][0].starts]
    assert tenants.count("b") >= 2


def test_within_a_tenant_the_first_comes_first() -> None:
    it = rig({}, max_running=1)
    for key in range(1, 6):
        it.arrive(request(key, 4, 2))
    order = []
    while it.flights[0]:
        order += [start.sequence for start in it.flights[0][0].starts]
        it.step()
    assert order == [1, 2, 3, 4, 5]


def test_running_answers_are_not_held_up_by_a_long_prompt() -> None:
    it = rig({}, max_step_tokens=8)
    for key in (1, 2):
        it.arrive(request(key, 2, 12))
        it.step()
    it.arrive(request(3, 30, 2))
    it.step()
    for _ in range(4):
        pieces = it.flights[0][0].slices
        assert [piece.sequence for piece in pieces] == [1, 2, 3]
        assert [piece.end - piece.begin for piece in pieces] == [1, 1, 6]
        it.step()


def test_prompts_in_progress_go_before_new_ones() -> None:
    it = rig({}, max_step_tokens=8)
    it.arrive(request(1, 20, 2))
    it.arrive(request(2, 3, 2))
    it.step()
    assert [(piece.sequence, piece.begin) for piece in it.flights[0][0].slices] == [(1, 8)]
    it.step()
    assert [(piece.sequence, piece.begin) for piece in it.flights[0][0].slices] == [(1, 16), (2, 0)]


def test_the_budget_bounds_a_step() -> None:
    it = rig({"composing": ("stall_free", 5)})
    it.arrive(request(1, 20, 2))
    it.arrive(request(2, 20, 2))
    while it.flights[0]:
        assert sum(piece.end - piece.begin for piece in it.flights[0][0].slices) <= 5
        it.step()
    it.check_done()


def test_nobody_passes_the_first_of_the_queue() -> None:
    it = rig({}, pages=10, max_step_tokens=40)
    it.arrive(request(1, 20, 2))
    it.arrive(request(2, 22, 2))
    it.arrive(request(3, 2, 2))
    it.step()
    assert it.core.stats().waiting == 2
    it.drain()
    it.check_done()


def test_a_reserve_spares_the_running_ones_from_losing_their_memory() -> None:
    losses = {}
    for admission in TABLE["admission"]:
        it = rig({"admission": admission}, pages=20)
        for key in range(1, 20):
            it.arrive(request(key, 8, 20))
        it.drain()
        it.check_done()
        losses[admission] = it.core.stats().preemptions
    assert losses["whole_prompt_fits"] < losses["next_slice_fits"]


def test_chunks_may_be_bounded() -> None:
    it = rig({"slicing": ("chunked", 3)})
    it.arrive(request(1, 10, 2))
    assert it.flights[0][0].slices[0].end == 3


def test_a_whole_prompt_waits_for_room_and_only_a_giant_is_cut() -> None:
    it = rig({"slicing": "whole_prompt"}, max_step_tokens=16, max_running=4)
    it.arrive(request(1, 10, 8))
    it.arrive(request(2, 12, 8))
    it.arrive(request(3, 30, 2))
    sizes: dict[int, list[int]] = {}
    while it.flights[0]:
        for piece in it.flights[0][0].slices:
            if piece.end - piece.begin > 1:
                sizes.setdefault(piece.sequence, []).append(piece.end - piece.begin)
        it.step()
    it.check_done()
    assert sizes[1] == [10]
    assert sizes[2] == [12]
    assert len(sizes[3]) > 1


def test_the_number_of_layer_groups_follows_the_length() -> None:
    groups = {}
    for length in (4, 9, 30):
        it = rig({"slicing": ("layered", 8)}, units=8, max_step_tokens=40, max_running=4)
        it.arrive(request(1, length, 1))
        groups[length] = 0
        while it.flights[0] and it.flights[0][0].slices:
            groups[length] += 1
            it.step()
        it.drain()
        it.check_done()
    assert groups == {4: 1, 9: 2, 30: 4}


def test_an_open_span_is_not_held_up_by_others() -> None:
    it = rig({"slicing": ("layered", 2)}, units=8, max_step_tokens=12, max_running=4)
    it.arrive(request(1, 4, 20))
    it.step()
    it.arrive(request(2, 8, 3))
    for key in (3, 4):
        it.arrive(request(key, 1, 20))
    steps = 0
    while 2 not in it.finish:
        it.step()
        steps += 1
    assert steps <= 9
    it.drain()
    it.check_done()


def test_the_earliest_deadline_goes_first() -> None:
    it = rig({"composing": "deadline_first"}, max_step_tokens=8)
    it.arrive(request(1, 4, 2))
    it.arrive(request(2, 8, 2, deadline_s=9.0))
    it.arrive(request(3, 8, 2, deadline_s=2.0))
    it.step()
    assert it.flights[0][0].slices[0].sequence == 3
    it.drain()
    it.check_done()
