"""Cancellation in every state, faults, failed plans, and what is done when nothing else helps."""

from __future__ import annotations

from typing import Any

import pytest
from choices import policies
from core_rig import Rig, request

from kvern.core.errors import InvariantBroken
from kvern.core.events import Aborted, Arrived, Interrupt, LaneFailed, Stepped, Woken
from kvern.core.limits import EngineConfig
from kvern.core.plan import OpenSpan, StepReport


def config(**more: Any) -> EngineConfig:
    base: dict[str, Any] = {"pages": 16, "units": 4, "max_context": 40, "page_tokens": 4, "max_step_tokens": 16}
    return EngineConfig(**{**base, **more})


def rig(names: dict[str, Any] | None = None, **more: Any) -> Rig:
    return Rig(config(**more), policies(**(names or {})))


def urgent() -> Rig:
    return rig({"composing": "deadline_first", "preemption": "urgent_first"}, max_step_tokens=40)


# -- cancellation ----------------------------------------------------------------------------------------


def test_cancelled_while_waiting() -> None:
    it = rig(max_running=1)
    it.arrive(request(1, 5, 3))
    it.arrive(request(2, 5, 3))
    it.handle(Aborted(2, "left"))
    assert it.finish == {2: "abort"}
    assert it.core.stats().waiting == 0
    it.drain()
    it.check_done()


@pytest.mark.parametrize("depth", [1, 2])
def test_cancelled_in_flight_frees_pages_only_when_the_step_is_reported(depth: int) -> None:
    it = rig(depth=depth)
    it.arrive(request(1, 9, 9))
    it.handle(Aborted(1, "left"))
    assert it.finish == {1: "abort"}
    assert it.core.stats().pages_used > 0
    for _ in range(depth):
        it.step()
    assert it.core.stats().pages_used == 0
    it.drain()
    it.check_done()


def test_cancelled_with_a_parked_span() -> None:
    it = urgent()
    it.arrive(request(1, 30, 3))
    it.arrive(request(2, 5, 3, deadline_s=1.0))
    it.step(stop_at=lambda piece: 2)
    it.handle(Aborted(1, "left"))
    it.drain()
    it.check_done()


def test_cancelled_after_it_lost_its_memory() -> None:
    it = rig({"admission": "next_slice_fits"}, pages=10)
    it.arrive(request(1, 6, 30))
    it.arrive(request(2, 6, 30))
    while not it.core.stats().preemptions:
        it.step()
    it.handle(Aborted(2, "left"))
    assert it.core.stats().waiting == 0
    it.drain()
    it.check_done()


def test_cancelling_twice_or_nobody_is_harmless() -> None:
    it = rig()
    it.arrive(request(1, 5, 3))
    it.handle(Aborted(1, "left"))
    assert it.handle(Aborted(1, "left")) == []
    assert it.handle(Aborted(99, "left")) == []
    it.drain()
    it.check_done()


# -- failures --------------------------------------------------------------------------------------------


def test_a_fault_ends_one_sequence_and_its_pages_are_not_shared() -> None:
    it = rig()
    it.arrive(request(1, 12, 9))
    it.step()
    it.arrive(request(2, 9, 3))
    it.step(faulty=frozenset({1}))
    assert it.finish[1] == "error"
    assert it.deltas[1][-1].error == "made to fail"
    it.arrive(request(3, it.requests[1].prompt, 3))
    it.drain()
    it.check_done()
    assert it.deltas[3][0].cached_tokens == 0


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("retries", [0, 2])
def test_one_bad_request_ends_no_other(count: int, depth: int, retries: int) -> None:
    it = rig(depth=depth, lane_retries=retries, pages=40)
    for key in range(1, count + 1):
        it.arrive(request(key, 4 + key, 6))
    bad, events = (count + 1) // 2, 0
    while any(it.flights):
        events += 1
        assert events < 300
        if any(piece.sequence == bad for piece in it.flights[0][0].slices):
            it.fail(applied=events % 2 == 0)
        else:
            it.step()
    it.check_done()
    assert {key for key, reason in it.finish.items() if reason == "error"} == {bad}


def test_a_plan_that_fails_once_is_tried_again_and_costs_nobody_anything() -> None:
    it = rig()
    it.arrive(request(1, 6, 6))
    it.arrive(request(2, 6, 6))
    it.fail()
    it.drain()
    it.check_done()
    assert set(it.finish.values()) == {"length"}


def test_a_dead_device_fails_everyone_in_bounded_steps() -> None:
    it = rig()
    for key in range(1, 9):
        it.arrive(request(key, 6, 6))
    for _ in range(100):
        if not it.flights[0]:
            break
        it.fail()
    assert set(it.finish.values()) == {"error"}
    assert len(it.finish) == 8
    assert it.core.stats().pages_used == 0


def test_a_report_that_fits_no_plan_is_a_bug() -> None:
    it = rig()
    it.arrive(request(1, 6, 6))
    with pytest.raises(InvariantBroken, match="not the next one"):
        it.core.handle(Stepped(StepReport(5, 0, ())), 0.0)
    with pytest.raises(InvariantBroken, match="not the next one"):
        it.core.handle(LaneFailed(3, 0, "no such lane"), 0.0)
    with pytest.raises(InvariantBroken, match="sampled 0 tokens for 1"):
        it.core.handle(Stepped(StepReport(0, 0, ())), 0.0)


def test_a_slice_without_token_or_span_ends_with_an_error() -> None:
    it = rig()
    it.arrive(request(1, 6, 6))
    plan = it.flights[0].popleft()
    it._used.clear()
    it.handle(Stepped(StepReport(plan.step, 0, (-1,))))
    assert it.finish == {1: "error"}


# -- the last resorts ------------------------------------------------------------------------------------


def test_pins_cannot_block_progress() -> None:
    it = rig(pages=6)
    it.arrive(request(1, 20, 4))
    it.drain()
    pool = it.core._ledger.pool
    for page in range(6):
        if pool.is_cached(page):
            pool.pin(page, 1000.0)
    assert pool.available < 5
    it.arrive(request(2, 20, 4))
    it.drain()
    it.check_done()


def test_pins_expire() -> None:
    it = rig(pages=6)
    it.arrive(request(1, 20, 4))
    it.drain()
    pool = it.core._ledger.pool
    page = next(page for page in range(6) if pool.is_cached(page))
    pool.pin(page, 1.0)
    assert pool.available == 5
    it.now = 1.0
    it.handle(Woken("pins"))
    assert pool.available == 6


def test_a_core_that_cannot_go_on_says_so() -> None:
    it = rig(pages=6)
    assert it.core._ledger.pool.reserve(6) is not None  # a leak, made on purpose
    with pytest.raises(InvariantBroken, match="no sequence can make progress"):
        it.core.handle(Arrived(request(1, 5, 5)), 0.0)


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(InvariantBroken, match="not an event"):
        rig().core.handle(Interrupt(0, 0), 0.0)  # type: ignore[arg-type]


def test_a_span_that_fits_no_slice_is_a_bug() -> None:
    it = urgent()
    it.arrive(request(1, 30, 3))
    with pytest.raises(InvariantBroken, match="does not fit"):
        it.core.handle(Stepped(StepReport(0, 0, (-1,), opens=(OpenSpan(1, 0, 29, 2),))), 0.0)


def test_cancelled_while_its_interrupted_plan_is_still_in_flight() -> None:
    it = urgent()
    it.arrive(request(1, 30, 3))
    it.arrive(request(2, 5, 3, deadline_s=1.0))
    it.handle(Aborted(1, "left"))
    it.step(stop_at=lambda piece: 2)
    it.drain()
    it.check_done()
