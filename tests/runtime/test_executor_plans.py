"""Whatever the plans look like, the tokens are those of the whole sequence run at once."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from lane_rig import GREEDY, LaneRig, started, whole
from page_device import PageDevice

from kvern.core.events import LaneFailed, Stepped
from kvern.core.plan import Fault, Finish, OpenSpan, PageCopy, PageGrant, SequenceStart, Slice
from kvern.core.request import Sampling
from kvern.kernels.reference.sample import ReferenceSampler
from kvern.runtime.device import StepBatch

PROMPT = [(i * 37 + 5) % 96 for i in range(150)]
PAGES = [7, 3, 9, 1]


@pytest.fixture
def device() -> PageDevice:
    return PageDevice()


@pytest.fixture
def rig(device: PageDevice):
    with LaneRig(device, ReferenceSampler()) as rig:
        yield rig


def test_prefill_and_decode_equal_the_whole_sequence(rig, device) -> None:
    tokens = [rig.prefill(1, PROMPT, PAGES)]
    tokens += rig.decode(1, len(PROMPT), 7)
    assert tokens == device.continuation(PROMPT, 8)


@pytest.mark.parametrize("chunk", [1, 63, 64, 100])
def test_chunks_of_a_prompt_equal_the_whole(rig, device, chunk) -> None:
    rest = started(1, PROMPT, PAGES)
    for begin in range(0, len(PROMPT), chunk):
        end = min(begin + chunk, len(PROMPT))
        report = rig.run(whole(device, 1, begin, end, emits=end == len(PROMPT)), **rest)
        rest = {}
    assert report.tokens == tuple(device.continuation(PROMPT, 1))


def test_many_sequences_with_prompts_and_decodes_in_one_step(rig, device) -> None:
    prompts = {s: PROMPT[: 5 + 11 * s] for s in range(1, 13)}  # more than the first slots: the arrays grow
    out = {s: [rig.prefill(s, p, [2 * s, 2 * s + 1, 2 * s + 30])] for s, p in list(prompts.items())[:10]}
    for step in range(4):
        slices = [whole(device, s, len(prompts[s]) + step, len(prompts[s]) + step + 1, emits=True) for s in out]
        rest = {}
        if step == 1:
            new = 11
            slices.insert(3, whole(device, new, 0, len(prompts[new]), emits=True))
            rest = started(new, prompts[new], [60, 61, 62])
        report = rig.run(*slices, **rest)
        for piece, token in zip(slices, report.tokens, strict=True):
            out.setdefault(piece.sequence, []).append(token)
        if step == 1:
            out.pop(11)
    assert all(tokens == device.continuation(prompts[s], 5) for s, tokens in out.items())


def test_a_layer_sliced_prompt_equals_the_whole(rig, device) -> None:
    rest = started(1, PROMPT, PAGES)
    for begin, end in ((0, 3), (3, 4), (4, 7)):
        report = rig.run(Slice(1, 0, 150, begin, end, False), **rest)
        assert report.opens == (OpenSpan(1, 0, 150, end),)
        rest = {}
    report = rig.run(Slice(1, 0, 150, 7, 8, True))
    assert report.tokens == tuple(device.continuation(PROMPT, 1))
    assert not report.opens
    assert rig.executor._batch.parked == {}


def test_an_interrupt_stops_at_a_unit_boundary_and_the_span_goes_on(rig, device) -> None:
    reached, go = threading.Event(), threading.Event()

    def pause_at_unit_5(unit: int) -> None:
        if unit == 5:
            reached.set()
            assert go.wait(30)

    device.on_unit = pause_at_unit_5
    step = rig.submit(whole(device, 1, 0, 150, emits=True), interruptible=True, **started(1, PROMPT, PAGES))
    assert reached.wait(30)
    rig.executor.interrupt(0, step + 1)  # another step's id: nothing
    rig.executor.interrupt(0, step)
    go.set()
    report = rig.report()
    assert report.opens == (OpenSpan(1, 0, 150, 5),)
    assert report.tokens == (-1,)
    device.on_unit = None
    assert rig.run(Slice(1, 0, 150, 5, 8, True)).tokens == tuple(device.continuation(PROMPT, 1))


def test_a_plan_that_may_not_be_interrupted_is_not(rig, device) -> None:
    reached, go = threading.Event(), threading.Event()
    device.on_unit = lambda unit: (reached.set(), go.wait(30))
    step = rig.submit(whole(device, 1, 0, 150, emits=True), **started(1, PROMPT, PAGES))
    assert reached.wait(30)
    rig.executor.interrupt(0, step)
    go.set()
    assert rig.report().tokens == tuple(device.continuation(PROMPT, 1))


def test_a_plan_queued_behind_an_interrupted_one_leaves_its_sequence_untouched(rig, device) -> None:
    reached, go = threading.Event(), threading.Event()
    device.on_unit = lambda unit: (reached.set(), go.wait(30)) if unit == 2 else None
    step = rig.submit(whole(device, 1, 0, 100), interruptible=True, **started(1, PROMPT, PAGES))
    rig.submit(
        whole(device, 1, 100, 150, emits=True), whole(device, 2, 0, 20, emits=True), **started(2, PROMPT[:20], [20])
    )
    assert reached.wait(30)
    rig.executor.interrupt(0, step)
    go.set()
    assert rig.report().opens == (OpenSpan(1, 0, 100, 2),)
    report = rig.report()
    assert report.untouched == (1,)
    assert report.tokens == (-1, device.continuation(PROMPT[:20], 1)[0])
    rig.run(Slice(1, 0, 100, 2, 8, False))
    assert rig.run(whole(device, 1, 100, 150, emits=True)).tokens == tuple(device.continuation(PROMPT, 1))


def test_depth_two_reads_tokens_that_were_not_sampled_when_the_plan_was_made(rig, device) -> None:
    rig.submit(whole(device, 1, 0, 150, emits=True), **started(1, PROMPT, PAGES))
    for at in range(150, 156):
        rig.submit(whole(device, 1, at, at + 1, emits=True))
    tokens = [rig.report().tokens[0] for _ in range(7)]
    assert tokens == device.continuation(PROMPT, 7)


def test_slices_after_a_finish_are_void(rig, device) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=2)
    rig.submit(whole(device, 1, 0, 150, emits=True), **started(1, PROMPT, PAGES, sampling))
    for at in (150, 151):
        rig.submit(whole(device, 1, at, at + 1, emits=True))
    assert rig.report().finished == ()
    assert rig.report().finished == (Finish(1, "length"),)
    report = rig.report()
    assert report.tokens == (-1,)
    assert not (report.finished or report.faults or report.untouched)


def test_stop_ids_stop_and_min_tokens_holds_them_back(rig, device) -> None:
    first, second = device.continuation(PROMPT, 2)
    stops = Sampling(temperature=0.0, max_tokens=50, stop_token_ids=(second, 95, 94, 93, 92, 91))
    assert rig.prefill(1, PROMPT, PAGES, stops) == first
    report = rig.run(whole(device, 1, 150, 151, emits=True))
    assert report.tokens == (second,)
    assert report.finished == (Finish(1, "stop", second),)
    held = Sampling(temperature=0.0, max_tokens=50, min_tokens=2, stop_token_ids=(first, second))
    tokens = [rig.prefill(2, PROMPT, [20, 21, 22], held), *rig.decode(2, 150, 1)]
    assert not {first, second} & set(tokens)


def test_pages_are_copied_before_the_slices_run(rig, device) -> None:
    rig.prefill(1, PROMPT[:100], [5, 6])
    report = rig.run(
        whole(device, 2, 99, 100, emits=True),
        starts=(SequenceStart(2, tuple(PROMPT[:100]), 100, GREEDY),),
        grants=(PageGrant(2, 0, (5, 8)),),
        copies=(PageCopy(6, 8),),
    )
    assert report.tokens == tuple(device.continuation(PROMPT[:100], 1))


def test_a_failing_step_is_reported_and_the_lane_goes_on(rig, device) -> None:
    def fail(unit: int) -> None:
        raise MemoryError("no room")

    device.on_unit = fail
    step = rig.submit(whole(device, 1, 0, 150, emits=True), **started(1, PROMPT, PAGES))
    assert rig.next() == LaneFailed(0, step, "MemoryError: no room")
    device.on_unit = None
    assert rig.prefill(1, PROMPT, PAGES) == device.continuation(PROMPT, 1)[0]


def test_a_slice_that_does_not_fit_its_sequence_fails_the_plan(rig, device) -> None:
    rig.prefill(1, PROMPT, PAGES)
    rig.submit(whole(device, 1, 151, 152, emits=True))  # token 151 is not known
    event = rig.next()
    assert isinstance(event, LaneFailed)
    assert "151" in event.message
    rig.submit(Slice(1, 150, 151, 4, 8, True))  # no such span is open
    assert isinstance(rig.next(), LaneFailed)


class PoisonedDevice(PageDevice):
    """Gives logits with a NaN for sequences whose last token is ``poison``."""

    poison = 13

    def _logits(self, batch: StepBatch, hidden: np.ndarray, rows: np.ndarray) -> np.ndarray:
        logits = super()._logits(batch, hidden, rows)
        logits[batch.tokens[rows] == self.poison, 3] = np.nan
        return logits


def test_logits_that_are_not_finite_fail_their_sequence_only() -> None:
    device = PoisonedDevice()
    with LaneRig(device, ReferenceSampler()) as rig:
        bad, good = [1, 2, 13], [1, 2, 14]
        starts = started(1, bad, [1])["starts"] + started(2, good, [2])["starts"]
        grants = started(1, bad, [1])["grants"] + started(2, good, [2])["grants"]
        report = rig.run(
            whole(device, 1, 0, 3, emits=True), whole(device, 2, 0, 3, emits=True), starts=starts, grants=grants
        )
        assert report.tokens == (-1, device.continuation(good, 1)[0])
        assert report.faults == (Fault(1, "the model's logits are not finite"),)


def test_prompt_logprobs_are_the_same_in_bounded_calls(device, monkeypatch) -> None:
    wanted = Sampling(temperature=0.0, max_tokens=5, prompt_logprobs=2, logprobs=1)
    reports = []
    for limit in (1 << 20, 4 * device.vocab_size * 7):  # all at once; seven rows a call
        monkeypatch.setattr("kvern.runtime.executor.LOGIT_BYTES", limit)
        with LaneRig(device, ReferenceSampler()) as rig:
            device.calls.clear()
            first = rig.run(whole(device, 1, 0, 40), **started(1, PROMPT[:60], [4], wanted))
            second = rig.run(whole(device, 1, 40, 60, emits=True))
            assert max(rows for rows, _ in device.calls) == (40 if limit == 1 << 20 else 7)
        reports.append((first.prompt_logprobs, second.prompt_logprobs, second.tokens, second.logprobs))
    assert reports[0] == reports[1]
    positions = [position for part in reports[0][:2] for _, position, _ in part]
    assert positions == list(range(1, 60))
    assert [scored.token for part in reports[0][:2] for _, _, scored in part] == PROMPT[1:60]
    assert reports[0][2] == tuple(device.continuation(PROMPT[:60], 1))
    assert reports[0][3][0][1].rank == 1


def test_two_lanes_share_a_device_one_plan_at_a_time(device) -> None:
    with LaneRig(device, ReferenceSampler(), lanes=2) as rig:
        for lane in (0, 1):
            pages = [10 * lane + 1, 10 * lane + 2, 10 * lane + 3]
            rig.submit(whole(device, lane, 0, 150, emits=True), lane=lane, **started(lane, PROMPT, pages))
            for at in range(150, 160):
                rig.submit(whole(device, lane, at, at + 1, emits=True), lane=lane)
        seen: dict[int, list[int]] = {0: [], 1: []}
        for _ in range(22):
            event = rig.next()
            assert isinstance(event, Stepped)
            seen[event.report.lane] += event.report.tokens
    assert seen[0] == seen[1] == device.continuation(PROMPT, 11)


def test_a_sequence_that_left_and_came_back_is_computed_afresh(rig, device) -> None:
    tokens = [rig.prefill(1, PROMPT, PAGES), *rig.decode(1, 150, 2)]
    known = [*PROMPT, *tokens]
    report = rig.run(
        whole(device, 1, 0, len(known), emits=True),
        ends=(1,),
        starts=(SequenceStart(1, tuple(known), len(PROMPT), GREEDY),),
        grants=(PageGrant(1, 0, (30, 31, 32)),),
    )
    assert [*tokens, report.tokens[0]] == device.continuation(PROMPT, 4)
