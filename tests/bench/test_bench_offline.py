"""Batches through the EngineClient port: what is counted, and what is an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kvern.bench.offline import answer, batch, salted_prompts, table
from kvern.core.errors import KvernError
from kvern.core.events import Delta
from kvern.core.ports import EngineInfo, EngineStats
from kvern.core.request import Request

INFO = EngineInfo("counting", 1000, 512, 64, 8, 4, "f32", "f32", "portable", 1, True, 0)


class CountingEngine:
    """An engine of the port whose n-th token is n; two tokens a step. ``short`` ends it early, ``fails`` in error."""

    def __init__(self, *, cached: int = 0, short: bool = False, fails: bool = False) -> None:
        self.info, self._cached, self._short, self._fails = INFO, cached, short, fails
        self.running = self.most = 0

    async def start(self) -> None: ...

    async def stats(self) -> EngineStats:
        return EngineStats()

    def alive(self) -> bool:
        return True

    async def close(self) -> None: ...

    async def stream(self, request: Request) -> AsyncIterator[Delta]:
        self.running += 1
        self.most = max(self.most, self.running)
        wanted = 1 if self._short else request.sampling.max_tokens
        yield Delta(request.id, cached_tokens=self._cached)
        for first in range(0, wanted, 2):
            await asyncio.sleep(0)
            yield Delta(request.id, tokens=tuple(range(first, min(first + 2, wanted))))
        self.running -= 1
        yield Delta(request.id, finish="error" if self._fails else "length", error="boom" if self._fails else None)


def test_tokens_and_hits_are_counted() -> None:
    engine = CountingEngine(cached=16)
    result = asyncio.run(batch(engine, salted_prompts(engine, 5, 64), 7))
    assert (result.requests, result.prompt_tokens, result.output_tokens) == (5, 320, 35)
    assert result.hit_rate == 0.25
    assert result.total_per_s == pytest.approx(result.output_per_s * 355 / 35)
    assert engine.most == 5  # given at once, not one after the other
    assert "25.0 %" in table(result)


def test_every_token_has_a_time_in_order() -> None:
    got = asyncio.run(answer(CountingEngine(), [1, 2], 5))
    assert len(got.token_s) == 5
    assert list(got.token_s) == sorted(got.token_s)


def test_prompts_stay_inside_the_vocabulary() -> None:
    tokens = [token for prompt in salted_prompts(CountingEngine(), 20, 64) for token in prompt]
    assert 0 <= min(tokens) <= max(tokens) < INFO.vocab_size


def test_a_short_answer_is_no_measurement() -> None:
    with pytest.raises(KvernError, match="asked for 8 tokens, got 1"):
        asyncio.run(answer(CountingEngine(short=True), [1], 8))


def test_a_failed_request_is_no_measurement() -> None:
    with pytest.raises(KvernError, match="boom"):
        asyncio.run(answer(CountingEngine(fails=True), [1], 2))
