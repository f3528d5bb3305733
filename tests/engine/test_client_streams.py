"""An engine in a thread, spoken to through its socket: streams, refusals, aborts, and what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager

import pytest
from page_device import PageDevice
from small_engine import ask, builder, collect

from kvern.core.errors import EngineDead, InvalidRequest, Overloaded
from kvern.core.ports import EngineStats
from kvern.engine.client import ClientLimits, SocketEngineClient
from kvern.engine.launch import ThreadEngine

QUICK = ClientLimits(backoff_s=0.01, restarts=8)


@asynccontextmanager
async def engine(build=None, **options):
    client = SocketEngineClient(ThreadEngine.launcher(build or builder()), limits=QUICK, **options)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


def prompt(seed: int, length: int) -> list[int]:
    return [(seed * 131 + i * 29) % 96 for i in range(length)]


async def settled(client: SocketEngineClient) -> EngineStats:
    """Stats once nothing runs and no step is in flight."""
    while True:
        stats = await client.stats()
        if not (stats.running or stats.waiting or stats.last_step_age_s):
            return stats


def run(coroutine):
    async def bounded():
        async with asyncio.timeout(60):
            return await coroutine

    return asyncio.run(bounded())


@pytest.mark.parametrize("batch", [1, 2, 7, 32])
def test_tokens_do_not_depend_on_the_batch(batch) -> None:
    async def check() -> None:
        async with engine() as client:
            prompts = {n: prompt(n, 3 + 17 * n) for n in range(batch)}
            results = await asyncio.gather(*(collect(client, ask(n, p)) for n, p in prompts.items()))
            for (tokens, deltas), own in zip(results, prompts.values(), strict=True):
                assert tokens == PageDevice().continuation(own, 10)
                assert [delta.finish for delta in deltas][-1] == "length"
            stats = await settled(client)
            assert stats.pages_used == 0
            assert stats.generation_tokens == 10 * batch

    run(check())


def test_a_prefix_hit_changes_no_token_and_is_told() -> None:
    async def check() -> None:
        async with engine() as client:
            own = prompt(3, 200)
            first, cold = await collect(client, ask(1, own))
            second, warm = await collect(client, ask(2, own))
            assert first == second == PageDevice().continuation(own, 10)
            assert cold[0].cached_tokens == 0
            assert warm[0].cached_tokens == 192

    run(check())


def test_preemption_changes_no_token() -> None:
    async def check() -> None:
        build = builder(lambda: PageDevice(pages=9), prefix_cache=False, names={"admission": "next_slice_fits"})
        async with engine(build) as client:
            prompts = {n: prompt(n, 60) for n in range(6)}
            results = await asyncio.gather(*(collect(client, ask(n, p, 100)) for n, p in prompts.items()))
            for (tokens, _), own in zip(results, prompts.values(), strict=True):
                assert tokens == PageDevice().continuation(own, 100)
            stats = await settled(client)
            assert stats.preemptions > 0
            assert stats.pages_used == 0

    run(check())


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_depth_and_layered_slicing_change_no_token(depth) -> None:
    async def check() -> None:
        build = builder(depth=depth, names={"slicing": "layered"} if depth == 1 else {})
        async with engine(build) as client:
            prompts = {n: prompt(n, 90 + n) for n in range(5)}
            results = await asyncio.gather(*(collect(client, ask(n, p, 12)) for n, p in prompts.items()))
            for (tokens, _), own in zip(results, prompts.values(), strict=True):
                assert tokens == PageDevice().continuation(own, 12)
            assert (await settled(client)).pages_used == 0

    run(check())


def test_leaving_a_stream_frees_its_pages() -> None:
    async def check() -> None:
        async with engine() as client:
            streams = [client.stream(ask(n, prompt(n, 100), 900)) for n in range(4)]
            for stream in streams:
                await anext(stream)
            assert (await client.stats()).pages_used > 0
            for stream in streams:
                await stream.aclose()
            assert (await settled(client)).pages_used == 0

    run(check())


def test_a_cancelled_reader_frees_its_pages() -> None:
    async def check() -> None:
        async with engine() as client:
            task = asyncio.create_task(collect(client, ask(1, prompt(1, 100), 900)))
            while not (await client.stats()).running:
                pass
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert (await settled(client)).pages_used == 0

    run(check())


def test_what_can_never_run_is_refused_with_the_field_and_the_limit() -> None:
    async def check() -> None:
        async with engine() as client:
            with pytest.raises(InvalidRequest, match="1023") as caught:
                await collect(client, ask(1, prompt(1, 2000)))
            assert caught.value.field == "prompt"

    run(check())


def test_a_full_queue_is_overload() -> None:
    async def check() -> None:
        async with engine(builder(max_waiting=1, max_running=1)) as client:
            streams = [client.stream(ask(n, prompt(n, 10), 900)) for n in range(3)]
            await anext(streams[0])
            waiting = asyncio.create_task(anext(streams[1]))
            while not (await client.stats()).waiting:
                pass
            with pytest.raises(Overloaded):
                await anext(streams[2])
            await streams[0].aclose()
            await waiting
            await streams[1].aclose()

    run(check())


def test_a_slow_reader_gets_all_tokens_in_fewer_deltas() -> None:
    async def check() -> None:
        async with engine() as client:
            stream = client.stream(ask(1, prompt(1, 10), 200))
            tokens = list((await anext(stream)).tokens)
            while (await client.stats()).running:
                pass
            deltas = [delta async for delta in stream]
            assert len(deltas) == 1
            assert deltas[0].finish == "length"
            assert tokens + list(deltas[0].tokens) == PageDevice().continuation(prompt(1, 10), 200)

    run(check())


def test_progress_is_told_and_info_is_there() -> None:
    async def check() -> None:
        seen = []
        async with engine(progress=lambda done, total: seen.append((done, total))) as client:
            assert client.info.vocab_size == 96
            assert client.memory_plan == "a plan"
            assert client.alive()
        assert seen == [(1, 2), (2, 2)]
        assert not client.alive()

    run(check())


def test_a_failing_build_raises_its_error() -> None:
    def build(wake, progress):
        raise InvalidRequestLike("no such format")

    class InvalidRequestLike(RuntimeError):
        pass

    async def check() -> None:
        client = SocketEngineClient(ThreadEngine.launcher(build), limits=QUICK)
        with pytest.raises(EngineDead, match="no such format"):
            await client.start()

    run(check())


def test_closing_ends_open_streams() -> None:
    async def check() -> None:
        async with engine() as client:
            stream = client.stream(ask(1, prompt(1, 10), 900))
            await anext(stream)
            await client.close()
            with pytest.raises(EngineDead):
                async for _ in stream:
                    pass

    run(check())


def test_progress_told_from_a_lane_thread_is_not_passed_on() -> None:
    """A back end that decodes its weights when they are first used does so in a lane, while the loop writes."""
    reports = []

    def build(wake, progress):
        device = PageDevice()
        device.on_unit = lambda unit: progress(unit, device.units)
        return builder(lambda: device)(wake, progress)

    async def check() -> None:
        async with engine(build, progress=lambda done, total: reports.append((done, total))) as client:
            await collect(client, ask(1, prompt(1, 10), 20))
            assert client.restarts == 0
        assert reports == [(1, 2), (2, 2)]

    run(check())
