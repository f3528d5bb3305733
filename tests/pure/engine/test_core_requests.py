"""What a request meets at the door, in the prefix cache, and in its deltas."""

from __future__ import annotations

from typing import Any

import pytest
from choices import policies
from core_rig import Rig, request
from model_device import expected

from kvern.core.events import Aborted, Arrived, Measured, Stepped, WeightsChanged
from kvern.core.limits import EngineConfig
from kvern.core.plan import StepReport, TokenLogprobs
from kvern.core.request import Request, Sampling


def rig(**more: Any) -> Rig:
    base: dict[str, Any] = {"pages": 16, "units": 4, "max_context": 40, "page_tokens": 4, "max_step_tokens": 16}
    return Rig(EngineConfig(**{**base, **more}), policies())


REFUSED = {
    "empty prompt": (Request(1, (), Sampling()), "prompt", 1),
    "negative token": (Request(1, (1, -2), Sampling()), "prompt", 0),
    "no output": (Request(1, (1,), Sampling(max_tokens=0)), "max_tokens", 1),
    "prompt over the context": (request(1, 40, 1), "prompt", 39),
    "prompt and output over the context": (request(1, 30, 11), "max_tokens", 10),
    "weight zero": (request(1, 3, 1, weight=0.0), "weight", None),
    "weight NaN": (request(1, 3, 1, weight=float("nan")), "weight", None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_never_run_is_refused_with_field_and_limit(name: str) -> None:
    item, field, limit = REFUSED[name]
    it = rig()
    it.arrive(item)
    assert (it.refused[1].field, it.refused[1].limit) == (field, limit)
    assert not any(it.flights)


def test_what_exceeds_the_pool_is_refused_even_within_the_context() -> None:
    it = rig(pages=4)
    it.arrive(request(1, 10, 7))
    assert (it.refused[1].field, it.refused[1].limit) == ("max_tokens", 6)
    it.arrive(request(2, 10, 6))
    it.drain()
    it.check_done()


def test_a_full_queue_refuses() -> None:
    it = rig(max_running=1, max_waiting=2)
    for key in range(1, 6):
        it.arrive(request(key, 3, 3))
    assert {key: item.field for key, item in it.refused.items()} == {4: "queue", 5: "queue"}
    it.drain()
    it.check_done()


def test_an_id_that_is_here_already_is_refused() -> None:
    it = rig()
    it.arrive(request(1, 3, 3))
    (refusal,) = it.core.handle(Arrived(request(1, 3, 3)), 0.0)
    assert refusal.field == "id"


def test_accepted_tokens_count_and_are_not_emitted_again() -> None:
    whole = request(1, 6, 9)
    tokens, _ = expected(whole)
    it = rig()
    it.arrive(request(1, whole.prompt, 9, accepted=tuple(tokens[:4])))
    it.drain()
    it.check_done()
    assert it.out[1] == tokens[4:]


def test_nothing_left_to_generate_is_answered_at_once() -> None:
    it = rig()
    it.arrive(request(1, 6, 2, accepted=(5, 6)))
    assert it.finish == {1: "length"}
    assert not any(it.flights)


def test_pages_are_shared_while_their_maker_still_runs() -> None:
    it = rig()
    it.arrive(request(1, 13, 20))
    it.step()
    it.arrive(request(2, it.requests[1].prompt, 3))
    it.step()
    piece = next(piece for piece in it.flights[0][0].slices if piece.sequence == 2)
    assert (piece.begin, piece.end) == (12, 13)
    it.drain()
    it.check_done()
    assert it.deltas[2][0].cached_tokens == 12
    assert [delta.cached_tokens for delta in it.deltas[2][1:]] == [0, 0]
    assert it.core.stats().prefix_hits_tokens == 12


def test_the_last_prompt_token_is_always_computed() -> None:
    it = rig()
    it.arrive(request(1, 12, 3))
    it.drain()
    it.arrive(request(2, it.requests[1].prompt, 3))
    assert it.flights[0][0].slices[0].begin == 8
    it.drain()
    it.check_done()


@pytest.mark.parametrize("salt", [b"", b"one"])
def test_salts_do_not_share(salt: bytes) -> None:
    it = rig()
    it.arrive(request(1, 12, 3, salt=salt))
    it.drain()
    it.arrive(request(2, it.requests[1].prompt, 3, salt=b"two"))
    it.arrive(request(3, it.requests[1].prompt, 3, salt=salt))
    it.drain()
    it.check_done()
    assert it.deltas[2][0].cached_tokens == 0
    assert it.deltas[3][0].cached_tokens == 8


def test_without_prefix_cache_nothing_is_found_or_kept() -> None:
    it = rig(prefix_cache=False)
    for key in (1, 2):
        it.arrive(request(key, tuple(range(12)), 3))
        it.drain()
    it.check_done()
    assert it.core.stats().pages_cached == 0
    assert it.core.stats().prefix_hits_tokens == 0


def test_the_least_recently_used_pages_go_first() -> None:
    it = rig(pages=6)
    for key, base in ((1, 10), (2, 20), (3, 10), (4, 30)):
        it.arrive(request(key, tuple(range(base, base + 12)), 1))
        it.drain()
    it.check_done()
    it.arrive(request(5, tuple(range(10, 22)), 1))
    it.drain()
    it.arrive(request(6, tuple(range(20, 32)), 1))
    it.drain()
    assert it.deltas[5][0].cached_tokens == 8
    assert it.deltas[6][0].cached_tokens == 0


def test_a_victim_is_spared_by_its_own_pages() -> None:
    it = Rig(
        EngineConfig(pages=12, units=4, max_context=40, page_tokens=4, max_step_tokens=40),
        policies(admission="next_slice_fits"),
    )
    it.arrive(request(1, 4, 30))
    it.arrive(request(2, 20, 4))
    it.arrive(request(3, 12, 20))
    it.drain()
    it.check_done()
    assert it.core.stats().preemptions > 0
    assert it.core.stats().prefix_hits_tokens > 0


def row(token: int) -> TokenLogprobs:
    return TokenLogprobs(token, -1.0, 1, ())


def test_prompt_logprobs_come_once_and_need_every_position() -> None:
    it = rig(max_step_tokens=4)
    prompt = tuple(range(1, 7))
    it.arrive(request(1, prompt, 2))
    it.drain()
    scored = Request(2, prompt, Sampling(0.0, max_tokens=2, prompt_logprobs=0, logprobs=0))
    it.arrive(scored)
    assert it.flights[0][0].slices[0].begin == 0
    reports = [
        StepReport(it.flights[0][0].step, 0, (), prompt_logprobs=tuple((2, p, row(prompt[p])) for p in range(1, 5))),
        StepReport(
            it.flights[0][0].step + 1, 0, (9,), prompt_logprobs=((2, 5, row(prompt[5])),), logprobs=((2, row(9)),)
        ),
    ]
    it.core.handle(Stepped(reports[0]), 0.0)
    emit = it.core.handle(Stepped(reports[1]), 0.0)[0]
    (delta,) = emit.deltas
    assert delta.prompt_logprobs == (None, *(row(token) for token in prompt[1:]))
    assert delta.logprobs == (row(9),)
    step = StepReport(reports[1].step + 1, 0, (8,))
    (last,) = it.core.handle(Stepped(step), 0.0)[0].deltas
    assert (last.prompt_logprobs, last.finish) == ((), "length")


def test_measured_values_reach_policies() -> None:
    it = rig()
    it.handle(Measured("step_s", 0.25))
    assert it.core._view.measured == {"step_s": 0.25}


def test_stats_count() -> None:
    it = rig(max_running=1)
    it.arrive(request(1, 5, 4))
    it.arrive(request(2, 5, 4))
    stats = it.core.stats()
    assert (stats.running, stats.waiting, stats.pages_used, stats.pages_total) == (1, 1, 2, 16)
    it.drain()
    stats = it.core.stats()
    assert (stats.prompt_tokens, stats.generation_tokens) == (10, 8)
    assert stats.steps == it.steps[0] + 1


def test_the_view_counts_pages_a_sequence_would_still_use() -> None:
    it = rig()
    it.arrive(request(1, 13, 20))
    it.step()
    view, ledger = it.core._view, it.core._ledger
    assert [view.pages_short(ledger.live[1], tokens) for tokens in (10, 16, 17)] == [0, 0, 1]
    twin = ledger.arrive(request(2, it.requests[1].prompt, 3))
    assert view.pages_short(twin, 13) == 1  # three pages are shared with one that runs


def test_the_view_counts_cached_pages_as_used_up() -> None:
    it = rig()
    it.arrive(request(1, 13, 2))
    it.drain()
    twin = it.core._ledger.arrive(request(2, it.requests[1].prompt, 3))
    assert it.core._view.pages_short(twin, 13) == 4


def test_prompt_logprobs_of_one_who_left_are_dropped() -> None:
    it = rig()
    it.arrive(Request(1, tuple(range(6)), Sampling(0.0, max_tokens=2, prompt_logprobs=0)))
    it.core.handle(Aborted(1, "left"), 0.0)
    it.core.handle(Stepped(StepReport(0, 0, (9,), prompt_logprobs=((1, 1, row(1)),))), 0.0)
    it.core.audit()
    assert it.core.stats().pages_used == 0


def test_kv_of_other_weights_is_not_shared() -> None:
    it = rig(max_running=1)
    it.arrive(request(1, 14, 2))
    prompt = it.requests[1].prompt

    def ask(key: int) -> None:
        it.arrive(request(key, prompt, 2))
        it.drain()

    it.drain()
    ask(2)
    it.arrive(request(3, prompt, 2))
    it.arrive(request(4, prompt, 2))  # waits, and has been looked up already
    it.handle(WeightsChanged(1))
    it.drain()
    ask(5)
    it.handle(WeightsChanged(2))
    ask(6)
    it.check_done()
    assert {key: it.deltas[key][0].cached_tokens for key in (2, 4, 5, 6)} == {2: 12, 4: 0, 5: 12, 6: 0}
