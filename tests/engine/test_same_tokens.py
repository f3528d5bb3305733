"""Same request, same seed, same tokens: alone and in batches, over prefix hits, preemption, plans of every shape,
kills and resumption, on real (tiny) models and both back ends."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from small_engine import collect
from tiny_engine import prompt_of, sampled, tiny_engine

BACKENDS = ("reference", "cpu")
LENGTHS = [5, 64, 70, 129, 3, 190, 63]


def run(coroutine):
    async def bounded():
        async with asyncio.timeout(200):
            return await coroutine

    return asyncio.run(bounded())


@pytest.fixture(params=BACKENDS, scope="module")
def backend(request) -> str:
    return request.param


def engine(backend: str, **options: object):
    """The reference back end sums in NumPy's order, which is not the same for every number of rows; a KV format that
    rounds would turn its last bits into visible ones. The promise of equal bits is the cpu back end's."""
    return tiny_engine(backend=backend, kv_format="f32" if backend == "reference" else "bf16", **options)


@pytest.fixture(scope="module")
def alone(backend) -> dict[int, list[int]]:
    """Tokens of each prompt when nothing else runs and nothing is cached."""

    async def each() -> dict[int, list[int]]:
        async with engine(backend, prefix_cache=False) as client:
            return {n: (await collect(client, sampled(n, prompt_of(n, k))))[0] for n, k in enumerate(LENGTHS)}

    found = run(each())
    assert all(len(tokens) == 12 for tokens in found.values())
    assert len({tuple(tokens) for tokens in found.values()}) == len(LENGTHS)
    return found


async def batch(client, size: int, count: int = 12) -> list[list[int]]:
    prompts = [prompt_of(n % 7, LENGTHS[n % 7]) for n in range(size)]
    results = await asyncio.gather(*(collect(client, sampled(n, p, count)) for n, p in enumerate(prompts)))
    return [tokens for tokens, _ in results]


@pytest.mark.parametrize("size", [2, 7, 32])
def test_in_batches(backend, alone, size) -> None:
    async def check() -> None:
        async with engine(backend) as client:
            assert await batch(client, size) == [alone[n % 7] for n in range(size)]

    run(check())


def test_with_a_prefix_hit(backend, alone) -> None:
    async def check() -> None:
        async with engine(backend) as client:
            await collect(client, sampled(1, prompt_of(5, 190)))
            tokens, deltas = await collect(client, sampled(2, prompt_of(5, 190)))
            assert deltas[0].cached_tokens == 128
            assert tokens == alone[5]

    run(check())


def test_with_preemption(backend) -> None:
    async def six(client) -> list[list[int]]:
        requests = [sampled(n, prompt_of(n, 60), 100) for n in range(6)]
        return [tokens for tokens, _ in await asyncio.gather(*(collect(client, request) for request in requests))]

    async def check() -> None:
        async with engine(backend) as client:
            undisturbed = await six(client)
            assert not (await client.stats()).preemptions
        options = {"pages": 9, "prefix_cache": False, "policies": {"admission": "next_slice_fits"}}
        async with engine(backend, **options) as client:
            assert await six(client) == undisturbed
            assert (await client.stats()).preemptions > 0

    run(check())


@pytest.mark.parametrize(
    "options",
    [
        {"max_step_tokens": 17},
        {"policies": {"slicing": "layered"}},
        {"policies": {"slicing": "whole_prompt"}, "max_step_tokens": 512},
        {"depth": 2},
        {"depth": 2, "lanes": 2},
        {"threads": 1},
    ],
    ids=str,
)
def test_with_plans_of_other_shapes(backend, alone, options) -> None:
    async def check() -> None:
        async with engine(backend, **options) as client:
            assert await batch(client, 7) == [alone[n] for n in range(7)]

    run(check())


def test_after_a_kill(backend) -> None:
    async def check() -> None:
        async with engine(backend) as client:
            undisturbed = await batch(client, 3, 100)
        async with engine(backend, embed=False) as client:
            task = asyncio.create_task(batch(client, 3, 100))
            while (await client.stats()).generation_tokens < 60:
                pass
            os.kill(client.pid or 0, signal.SIGKILL)
            assert await task == undisturbed
            assert client.restarts == 1

    run(check())
