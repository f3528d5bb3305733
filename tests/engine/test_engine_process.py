"""The engine as a process of its own: killed, restarted, poisoned, orphaned."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from page_device import PageDevice
from small_engine import ask, collect

from kvern.core.errors import EngineDead
from kvern.engine.client import ClientLimits, SocketEngineClient
from kvern.engine.launch import ProcessEngine

SUPPORT = Path(__file__).parents[1] / "support"
QUICK = ClientLimits(backoff_s=0.01, restarts=8)


@pytest.fixture(autouse=True)
def _support_on_the_path(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(SUPPORT), *filter(None, sys.path)]))


@asynccontextmanager
async def engine(limits: ClientLimits = QUICK, **options):
    launch = ProcessEngine.launcher(json.dumps(options), "page_engine")
    client = SocketEngineClient(launch, limits=limits)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


def run(coroutine):
    async def bounded():
        async with asyncio.timeout(120):
            return await coroutine

    return asyncio.run(bounded())


def prompt(seed: int, length: int) -> list[int]:
    return [(seed * 131 + i * 29) % 96 for i in range(length)]


def test_streams_go_on_with_the_same_tokens_when_the_engine_is_killed() -> None:
    async def check() -> None:
        async with engine(slow=0.002) as client:
            prompts = {n: prompt(n, 30 + 11 * n) for n in range(4)}
            tasks = [asyncio.create_task(collect(client, ask(n, p, 60))) for n, p in prompts.items()]
            first = client.pid
            for kill in range(2):
                while (await client.stats()).generation_tokens < 40 or client.restarts < kill or not client.alive():
                    await asyncio.sleep(0)
                assert client.pid is not None
                os.kill(client.pid, signal.SIGKILL)
                while client.alive():
                    await asyncio.sleep(0)
            results = await asyncio.gather(*tasks)
            for (tokens, deltas), own in zip(results, prompts.values(), strict=True):
                assert tokens == PageDevice().continuation(own, 60)
                assert deltas[-1].finish == "length"
            assert client.restarts == 2
            assert client.pid != first
            assert client.alive()
            assert (await client.stats()).pages_used == 0

    run(check())


def test_a_request_that_kills_the_engine_is_given_up_and_the_others_finish() -> None:
    async def check() -> None:
        async with engine(poison=500, slow=0.001) as client:
            healthy = {n: [n + 1] * (20 + n) for n in range(3)}
            expected = {n: PageDevice().continuation(p, 40) for n, p in healthy.items()}
            tasks = {n: asyncio.create_task(collect(client, ask(n, p, 40))) for n, p in healthy.items()}
            while not (await client.stats()).generation_tokens:
                await asyncio.sleep(0)
            tokens, deltas = await collect(client, ask(99, [1, 2, 500]))
            assert tokens == []
            assert deltas[-1].finish == "error"
            assert "died 3 times" in (deltas[-1].error or "")
            for n, task in tasks.items():
                assert (await task)[0] == expected[n]
            assert client.restarts == 3

    run(check())


def test_an_engine_that_dies_too_often_stays_dead() -> None:
    async def check() -> None:
        limits = ClientLimits(backoff_s=0.01, restarts=2)
        async with engine(limits, poison=500) as client:
            with pytest.raises(EngineDead, match="died 3 times"):
                await asyncio.gather(*(collect(client, ask(n, [n, 500])) for n in range(3)))
            assert not client.alive()
            with pytest.raises(EngineDead):
                await collect(client, ask(9, [1]))

    run(check())


def test_leaving_during_a_restart_leaves_nothing_behind() -> None:
    async def check() -> None:
        async with engine() as client:
            stream = client.stream(ask(1, prompt(1, 10), 900))
            await anext(stream)
            os.kill(client.pid or 0, signal.SIGKILL)
            while client.alive():
                await asyncio.sleep(0)
            await stream.aclose()
            assert await collect(client, ask(2, prompt(2, 10), 5))
            stats = await client.stats()
            assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)

    run(check())


def test_sigterm_ends_the_engine_in_order() -> None:
    async def check() -> None:
        async with engine() as client:
            pid = client.pid
            os.kill(pid or 0, signal.SIGTERM)
            while client.pid == pid:
                await asyncio.sleep(0)

    run(check())


PARENT = """
import asyncio, json, os, sys
from kvern.engine.client import SocketEngineClient
from kvern.engine.launch import ProcessEngine

async def main():
    client = SocketEngineClient(ProcessEngine.launcher(json.dumps({}), "page_engine"))
    await client.start()
    print(client.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_the_engine_does_not_outlive_its_client() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    engine_pid = int(parent.stdout.readline())
    descriptor = os.pidfd_open(engine_pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    import select

    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    assert poll.poll(20_000), "the engine is still there"
    os.close(descriptor)


def test_streams_are_not_turned_away_after_a_restart() -> None:
    """More run and wait than the queue of a fresh engine takes at once: they come in as others end."""

    async def check() -> None:
        async with engine(slow=0.002, max_waiting=2, max_running=2) as client:
            prompts = {n: prompt(n, 10 + n) for n in range(4)}
            tasks = {n: asyncio.create_task(collect(client, ask(n, prompts[n], 40))) for n in (0, 1)}
            while (await client.stats()).running < 2:
                await asyncio.sleep(0)
            tasks |= {n: asyncio.create_task(collect(client, ask(n, prompts[n], 40))) for n in (2, 3)}
            while (await client.stats()).waiting < 2:
                await asyncio.sleep(0)
            os.kill(client.pid or 0, signal.SIGKILL)
            for n, task in tasks.items():
                assert (await task)[0] == PageDevice().continuation(prompts[n], 40)
            assert client.restarts == 1

    run(check())
