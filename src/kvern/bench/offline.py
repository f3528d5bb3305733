"""Batches straight through an ``EngineClient``: no HTTP, no text, token ids in and out."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kvern.bench.load import Shape, random_prompts
from kvern.core.errors import KvernError
from kvern.core.ports import EngineClient
from kvern.core.request import Request, Sampling

_ids = itertools.count(1)


@dataclass(frozen=True)
class Answer:
    """One request: seconds from the start of its batch at which each token arrived, and what the cache gave."""

    token_s: tuple[float, ...]
    cached_tokens: int


@dataclass(frozen=True)
class Batch:
    """N requests given at once; rates are over the whole wall, prefill included."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    hit_rate: float  # cached prompt tokens / prompt tokens

    @property
    def output_per_s(self) -> float:
        return self.output_tokens / self.seconds

    @property
    def total_per_s(self) -> float:
        return (self.prompt_tokens + self.output_tokens) / self.seconds

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"output_per_s": self.output_per_s, "total_per_s": self.total_per_s}


async def answer(client: EngineClient, prompt: Sequence[int], output: int) -> Answer:
    """Exactly ``output`` greedy tokens after ``prompt``. Raises KvernError when the engine ends early."""
    sampling = Sampling(temperature=0.0, max_tokens=output, min_tokens=output)
    request = Request(id=next(_ids), prompt=tuple(prompt), sampling=sampling, arrival_s=time.monotonic())
    start = time.perf_counter()
    times: list[float] = []
    cached = 0
    async for delta in client.stream(request):
        cached += delta.cached_tokens
        times += [time.perf_counter() - start] * len(delta.tokens)
        if delta.error is not None:
            raise KvernError(f"the engine gave up a request: {delta.error}")
    if len(times) != output:
        raise KvernError(f"asked for {output} tokens, got {len(times)}")
    return Answer(tuple(times), cached)


async def batch(client: EngineClient, prompts: Sequence[Sequence[int]], output: int) -> Batch:
    """All prompts at once, ``output`` tokens each."""
    start = time.perf_counter()
    answers = await asyncio.gather(*(answer(client, prompt, output) for prompt in prompts))
    seconds = time.perf_counter() - start
    asked = sum(map(len, prompts))
    hit_rate = sum(one.cached_tokens for one in answers) / asked
    return Batch(len(prompts), asked, output * len(prompts), seconds, hit_rate)


def salted_prompts(client: EngineClient, count: int, length: int, *, shared: int = 0, seed: int | None = None) -> Any:
    """Random token ids of this model's vocabulary; ``seed`` None: other ones every time."""
    shape = Shape(length, 0, shared, client.info.vocab_size)
    return random_prompts(count, shape, seed or 0, salted=seed is None)


def table(result: Batch) -> str:
    return "\n".join(
        (
            f"requests          {result.requests} in {result.seconds:.2f} s",
            f"tokens            {result.prompt_tokens} in, {result.output_tokens} out",
            f"prefix hit rate   {100 * result.hit_rate:.1f} % of prompt tokens",
            f"output            {result.output_per_s:.1f} tokens/s",
            f"input + output    {result.total_per_s:.1f} tokens/s",
        )
    )
