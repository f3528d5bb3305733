"""Arrivals and prompts: repeatable where they must be, salted where they must be."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path

import pytest

from kvern.bench.load import Shape, arrivals, file_calls, random_calls, random_prompts
from kvern.bench.summary import Timing, spread, summarise, table
from kvern.core.errors import ConfigError


def test_arrivals_are_poisson_and_repeatable() -> None:
    times = arrivals(20_000, 5.0, seed=3)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times == arrivals(20_000, 5.0, seed=3) != arrivals(20_000, 5.0, seed=4)
    assert times[0] == 0.0 and min(gaps) >= 0
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.05)  # of an exponential: equal to its mean


def test_rate_zero_sends_all_at_once() -> None:
    assert arrivals(3, 0, seed=1) == [0.0, 0.0, 0.0]


def test_salted_prompts_differ_from_run_to_run_and_unsalted_do_not() -> None:
    shape = Shape(prompt=32, output=1)
    assert random_prompts(4, shape, 7, salted=True) != random_prompts(4, shape, 7, salted=True)
    assert random_prompts(4, shape, 7, salted=False) == random_prompts(4, shape, 7, salted=False)


def test_a_shared_prefix_is_shared_and_the_rest_is_not() -> None:
    prompts = random_prompts(5, Shape(prompt=48, shared=32), 1, salted=True)
    assert len({tuple(prompt[:32]) for prompt in prompts}) == 1
    assert len({tuple(prompt[32:]) for prompt in prompts}) == 5
    assert {len(prompt) for prompt in prompts} == {48}


def test_exact_output_lengths_are_asked_for() -> None:
    call = random_calls(1, 0, Shape(prompt=4, output=9), seed=0)[0]
    assert (call.body["max_tokens"], call.body["min_tokens"], call.body["ignore_eos"]) == (9, 9, True)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="shared-prefix-len"):
        random_prompts(1, Shape(prompt=4, shared=5), 0, salted=False)
    with pytest.raises(ConfigError, match="vocab-size"):
        random_prompts(1, Shape(vocabulary=10), 0, salted=False)


def test_prompts_from_a_file_are_salted_in_front(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    chat = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    path.write_text(json.dumps({"prompt": "hello"}) + "\n\n" + json.dumps(chat) + "\n")
    first, second = file_calls(path, 0, seed=0)
    assert first.body["prompt"].endswith("hello") and first.body["prompt"] != "hello"
    assert second.body["messages"][0]["content"].endswith("] hello") and second.body["max_tokens"] == 3
    assert file_calls(path, 0, seed=0, salted=False)[0].body["prompt"] == "hello"


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x"}\n{"text": "x"}\n')
    with pytest.raises(ConfigError, match=r"prompts\.jsonl:2"):
        file_calls(path, 0, seed=0)


def test_percentiles_are_nearest_rank() -> None:
    got = spread([i / 1000 for i in range(1, 101)])
    assert got is not None
    assert (got.p50, got.p90, got.p99, got.max) == pytest.approx((50, 90, 99, 100))
    assert spread([]) is None


def test_latencies_follow_their_definitions() -> None:
    timing = Timing(0.0, 1.0, [1.5, 1.7, 1.9], done_s=2.0, prompt_tokens=10, output_tokens=3, cached_tokens=5)
    summary = summarise([timing])
    assert summary.ttft_ms is not None and summary.tpot_ms is not None
    assert summary.itl_ms is not None and summary.e2e_ms is not None
    assert summary.ttft_ms.p50 == pytest.approx(500)
    assert summary.tpot_ms.p50 == pytest.approx(200)
    assert summary.itl_ms.max == pytest.approx(200)
    assert summary.e2e_ms.mean == pytest.approx(1000)
    assert summary.output_per_s == pytest.approx(3.0) and summary.hit_rate == 0.5
    assert "50.0 %" in table(summary)


def test_the_servers_counters_give_a_rate_when_usage_does_not() -> None:
    timing = Timing(0.0, 0.0, [0.5], done_s=1.0, prompt_tokens=10, output_tokens=1)
    assert summarise([timing], (5, 20)).hit_rate == 0.25
    assert "withheld" in table(summarise([timing], None))
