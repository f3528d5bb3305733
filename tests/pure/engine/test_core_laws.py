"""The laws that the mechanism keeps whatever a policy says, one at a time."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from choices import policies
from core_rig import Rig, request
from model_device import expected

from kvern.core.errors import ConfigError
from kvern.core.events import Execute, Interrupt, Reprioritise, WakeAt, Woken
from kvern.core.limits import EngineConfig
from kvern.core.views import Admission, Builder, Composing, Order, Preemption, Refusal, SequenceView, Slicing
from kvern.policies.table import TABLE


def config(**more: Any) -> EngineConfig:
    base: dict[str, Any] = {"pages": 16, "units": 4, "max_context": 40, "page_tokens": 4, "max_step_tokens": 16}
    return EngineConfig(**{**base, **more})


def rig(names: dict[str, Any] | None = None, **more: Any) -> Rig:
    return Rig(config(**more), policies(**(names or {})))


WORKLOADS = {
    "one prompt shared": [request(i, tuple(range(9)), 12) for i in range(1, 13)],
    "long and short": [request(i, 30 if i % 3 else 2, 3 + i % 9) for i in range(1, 13)],
    "long answers": [request(i, 1 + i % 3, 30) for i in range(1, 13)],
}
TIGHT = {
    "memory": {"pages": 10},
    "seats": {"max_running": 2},
    "rows": {"max_step_tokens": 3},
    "depth": {"pages": 10, "depth": 2},
}


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("names", list(itertools.product(*TABLE.values())), ids="-".join)
def test_all_policies_finish_all_work_with_equal_tokens(names: tuple[str, ...], workload: str) -> None:
    for limits in TIGHT.values():
        it = rig(dict(zip(TABLE, names, strict=True)), **limits)
        for item in WORKLOADS[workload]:
            it.arrive(item)
        it.drain(3000)
        it.check_done()
        assert set(it.finish.values()) == {"length"}


def test_memory_is_taken_only_from_those_ranked_below() -> None:
    lost: list[int] = []

    def victims(below, pages, view):
        lost.extend(item.id for item in below)
        return list(view.running())  # the policy asks for everybody, the highest-ranked first

    names = {"admission": "next_slice_fits", "preemption": Preemption("greedy", victims)}
    it = rig(names, pages=10)
    for key in range(1, 5):
        it.arrive(request(key, 6, 30))
    it.drain()
    it.check_done()
    assert lost
    assert 1 not in lost
    assert it.core.stats().preemptions > 0


def test_losses_are_bounded_and_the_victim_keeps_its_tokens() -> None:
    seen: dict[int, int] = {}

    def admit(sequence, view):
        seen[sequence.id] = max(seen.get(sequence.id, 0), sequence.losses)
        return 0

    def newest_first(sequence, view):
        return -float(sequence.rank[1])  # every arrival robs those before it

    order = Order(
        "newest",
        lambda view: iter([*view.preempted(), *(s for q in view.queues().values() for s in q.values())]),
        newest_first,
    )
    it = rig({"order": order, "admission": Admission("open", admit)}, pages=10, max_losses=2)
    for key in range(1, 20):
        it.arrive(request(key, 6, 20))
        it.step()
        it.step()
    it.drain()
    it.check_done()
    assert max(seen.values()) == 2


def nothing(builder: Builder) -> None:
    """A composing policy that never composes."""


def forever(builder: Builder) -> None:
    """A composing policy that always waits."""
    builder.wait_until(builder.view.now + 1000.0)


SILLY = {
    "composing nothing": {"composing": Composing("nothing", nothing, steady=True)},
    "admitting nobody": {"admission": Admission("closed", lambda sequence, view: None)},
    "admitting with all pages": {"admission": Admission("greedy", lambda sequence, view: 10**9)},
    "cutting nothing": {"slicing": Slicing("none", lambda sequence, room, view: (0, 4))},
    "cutting too much": {"slicing": Slicing("all", lambda sequence, room, view: (10**6, 4))},
    "cutting backwards": {"slicing": Slicing("back", lambda sequence, room, view: (-3, 0))},
    "beyond the last unit": {"slicing": Slicing("deep", lambda sequence, room, view: (1, 99))},
    "hiding the queue": {"order": Order("empty", lambda view: iter(()))},
    "ranking with NaN": {
        "order": Order("nan", lambda view: iter(view.preempted()), lambda sequence, view: float("nan"))
    },
    "no victims": {"preemption": Preemption("none", lambda below, pages, view: ()), "admission": "next_slice_fits"},
}


@pytest.mark.parametrize("names", SILLY.values(), ids=SILLY)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_silly_policy_does_no_harm(names: dict[str, Any], depth: int) -> None:
    it = rig(names, pages=10, depth=depth)
    for key in range(1, 8):
        it.arrive(request(key, 5 * key, 5))
    it.drain()
    it.check_done()


def test_a_waiting_window_is_bounded() -> None:
    it = rig({"composing": Composing("forever", forever)}, max_wait_s=0.5)
    commands = it.arrive(request(1, 5, 1))
    assert commands == [WakeAt(0.5, "plan")]
    it.now = 0.25
    assert it.handle(Woken("plan")) == [WakeAt(0.5, "plan")]
    it.now = 0.5
    assert isinstance(it.handle(Woken("plan"))[0], Execute)


def test_a_window_collects_arrivals_into_one_plan() -> None:
    def compose(builder: Builder) -> None:
        waiting = list(builder.waiting())
        if len(waiting) < 3 and not builder.running():
            builder.wait_until(builder.view.now + 0.05)
            return
        for sequence in [*builder.running(), *waiting]:
            builder.offer(sequence)

    it = rig({"composing": Composing("window", compose)})
    assert it.arrive(request(1, 2, 1)) == [WakeAt(0.05, "plan")]
    it.arrive(request(2, 2, 1))
    (command,) = it.arrive(request(3, 2, 1))
    assert [piece.sequence for piece in command.plan.slices] == [1, 2, 3]


def test_two_owners_of_one_claim_stop_the_start() -> None:
    with pytest.raises(ConfigError, match="both claim 'slicing'"):
        policies(composing=Composing("owns slices", nothing, claims=("composing", "slicing")))


@pytest.mark.parametrize("field", ["pages", "units", "max_context", "lanes", "depth", "max_running"])
def test_limits_below_one_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        config(**{field: 0})


def test_negative_limits_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_wait_s"):
        config(max_wait_s=-1.0)


# -- interrupts ------------------------------------------------------------------------------------------


def urgent() -> Rig:
    return rig({"composing": "deadline_first", "preemption": "urgent_first"}, max_step_tokens=40)


def test_an_urgent_arrival_interrupts_and_the_span_is_resumed_where_it_stopped() -> None:
    it = urgent()
    it.arrive(request(1, 30, 3))
    commands = it.arrive(request(2, 5, 3, deadline_s=1.0))
    assert commands == [Interrupt(0, 0)]
    (command,) = [c for c in it.step(stop_at=lambda piece: 2) if isinstance(c, Execute)]
    first, second = command.plan.slices
    assert (first.sequence, first.unit_begin) == (2, 0)
    assert (second.sequence, second.begin, second.end, second.unit_begin, second.unit_end) == (1, 0, 30, 2, 4)
    it.drain()
    it.check_done()
    assert it.device.rows == 30 + 30 + 5 + 2 + 2  # twice the prompt: two halves of its units


def test_a_plan_is_interrupted_once_and_only_for_someone_more_urgent() -> None:
    it = urgent()
    it.arrive(request(1, 30, 3, deadline_s=5.0))
    assert it.arrive(request(2, 5, 3, deadline_s=9.0)) == []
    assert it.arrive(request(3, 5, 3)) == []
    assert it.arrive(request(4, 5, 3, deadline_s=1.0)) == [Interrupt(0, 0)]
    assert it.arrive(request(5, 5, 3, deadline_s=0.5)) == []
    it.drain()
    it.check_done()


def test_stale_and_foreign_interrupts_are_dropped() -> None:
    wishes = [Interrupt(0, 7), Interrupt(5, 0), Interrupt(-1, 0), Interrupt(0, 0)]
    plain = Preemption("eager", lambda below, pages, view: (), lambda event, view: wishes, interruptible=False)
    it = rig({"preemption": plain})
    commands = it.arrive(request(1, 5, 3))
    assert [type(command) for command in commands] == [Execute]
    it.drain()
    it.check_done()
    assert not it.interrupted


def test_layered_slices_leave_spans_and_compute_each_unit_once() -> None:
    it = rig({"slicing": ("layered", 4)}, units=6, max_step_tokens=20, max_running=4)
    it.arrive(request(1, 12, 4))
    spans = [(p.slices[0].unit_begin, p.slices[0].unit_end) for p in [it.flights[0][0]]]
    while it.flights[0] and it.flights[0][0].slices[0].begin == 0:
        it.step()
        if it.flights[0]:
            piece = it.flights[0][0].slices[0]
            spans.append((piece.unit_begin, piece.unit_end))
    assert spans == [(0, 2), (2, 4), (4, 6), (0, 6)]
    it.drain()
    it.check_done()


# -- two plans in flight ---------------------------------------------------------------------------------


def test_the_next_step_is_planned_before_its_input_token_is_known() -> None:
    it = rig(depth=2)
    it.arrive(request(1, 5, 4))
    first, second = it.flights[0]
    assert (first.slices[0].begin, first.slices[0].end, first.slices[0].emits) == (0, 5, True)
    assert (second.slices[0].begin, second.slices[0].end, second.slices[0].emits) == (5, 6, True)
    it.drain()
    it.check_done()


def test_a_token_sampled_after_the_stop_is_void() -> None:
    tokens, _ = expected(request(1, 5, 20))
    stop = next(token for number, token in enumerate(tokens) if number > 2 and token not in tokens[:number])
    it = rig(depth=2)
    it.arrive(request(1, 5, 20, stops=(stop,)))
    while not it.finish:
        it.step()
    assert it.flights[0][0].slices[0].sequence == 1  # planned before the stop was known
    it.drain()
    it.check_done()
    assert it.finish[1] == "stop"
    assert it.deltas[1][-1].stop_token == stop


def test_nothing_is_planned_past_max_tokens() -> None:
    it = rig(depth=3)
    it.arrive(request(1, 5, 9))
    planned = 0
    while it.flights[0]:
        planned += sum(piece.end - piece.begin for piece in it.flights[0][0].slices)
        it.step()
    it.check_done()
    assert planned == 5 + 8


# -- precedence ------------------------------------------------------------------------------------------


def test_precedence_changes_by_event_only_and_not_too_often() -> None:
    it = rig()
    it.arrive(request(1, 6, 20))
    sequence = it.core._ledger.live[1]
    it.handle(Reprioritise(1, 5.0))
    assert sequence.rank == (5.0, 1)
    it.now = 0.5
    it.handle(Reprioritise(1, 7.0))
    assert sequence.rank == (5.0, 1)
    it.now = 1.0
    it.handle(Reprioritise(1, 7.0))
    assert sequence.rank == (7.0, 1)
    it.handle(Reprioritise(99, 7.0))


def test_rank_is_asked_once() -> None:
    asked: list[int] = []

    def rank(sequence, view):
        asked.append(sequence.id)
        return 0.0

    order = policies().order
    it = rig({"order": Order("counting", order.arrange, rank), "admission": "next_slice_fits"}, pages=10)
    for key in range(1, 5):
        it.arrive(request(key, 6, 30))
    it.drain()
    it.check_done()
    assert asked == [1, 2, 3, 4]


# -- what a builder tells a policy -----------------------------------------------------------------------


def test_every_refusal_says_why_and_changes_nothing() -> None:
    said: list[Refusal | None] = []

    def compose(builder: Builder) -> None:
        if builder.view.now:
            (one,) = builder.running()
            said.extend(builder.take(one, tokens, unit_end) for tokens, unit_end in [(2, 4), (1, 5), (1, 0), (17, 4)])
            said.append(builder.offer(one, 0))
            said.append(builder.take(one, 1, 4))
            said.append(builder.take(one, 1, 4))
            said.append(builder.offer(gone[0]))
            said.extend(builder.offer(sequence) for sequence in builder.waiting())
            return
        for sequence in [*builder.running(), *builder.waiting()]:
            gone.append(sequence)
            builder.offer(sequence)

    gone: list[SequenceView] = []
    it = rig({"composing": Composing("prying", compose)}, max_running=2)
    it.arrive(request(9, 2, 1))
    it.drain()
    it.arrive(request(1, 5, 9))
    it.now = 1.0
    it.arrive(request(2, 5, 9))
    it.step()
    assert said == [
        *[Refusal.CURSOR] * 3,
        Refusal.BUDGET,
        Refusal.BUDGET,
        None,
        Refusal.CURSOR,
        Refusal.CURSOR,
        None,
    ]
