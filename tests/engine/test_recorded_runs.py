"""The event log of real runs, replayed: the same events give the same commands. And a real operator interrupt."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import msgspec
import pytest
from page_device import PageDevice
from small_engine import ask, builder, collect, policies

from kvern.core.events import Emit, Interrupt
from kvern.engine.client import SocketEngineClient
from kvern.engine.event_log_files import EventLogFiles, read_records
from kvern.engine.launch import ThreadEngine
from kvern.engine.record import read_entry
from kvern.engine.replay import replay


def prompt(seed: int, length: int) -> list[int]:
    return [(seed * 131 + i * 29) % 96 for i in range(length)]


def run(coroutine):
    async def bounded():
        async with asyncio.timeout(100):
            return await coroutine

    return asyncio.run(bounded())


async def serve(build, work) -> None:
    client = SocketEngineClient(ThreadEngine.launcher(build))
    await client.start()
    try:
        await work(client)
    finally:
        await client.close()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("pages", [9, 64])
def test_a_log_replays_to_the_same_commands(tmp_path, depth, pages) -> None:
    sink = EventLogFiles(tmp_path, "run")
    build = builder(lambda: PageDevice(pages=pages), sink=sink, depth=depth, names={"admission": "next_slice_fits"})

    async def work(client) -> None:
        stream = client.stream(ask(100, prompt(9, 50), 400))
        await anext(stream)
        await asyncio.gather(*(collect(client, ask(n, prompt(n, 60), 80)) for n in range(6)))
        await stream.aclose()

    run(serve(build, work))
    sink.close()
    records = list(read_records(tmp_path, "run"))
    result = replay(records, policies(admission="next_slice_fits"))
    assert result.difference is None
    assert result.events == len(records) - 1 > 80
    if pages == 9:  # memory is short: another policy must decide otherwise
        assert replay(records, policies(admission="whole_prompt_fits")).difference is not None


def test_an_urgent_request_interrupts_a_prefill_which_then_goes_on(tmp_path) -> None:
    sink = EventLogFiles(tmp_path, "run")
    inside, device = asyncio.Event(), PageDevice(pages=64)
    names = {"preemption": "urgent_first", "composing": "deadline_first", "slicing": "whole_prompt"}
    build = builder(lambda: device, sink=sink, names=names, max_step_tokens=1024)

    async def work(client) -> None:
        loop, arrived = asyncio.get_running_loop(), threading.Event()

        def hold(unit: int) -> None:
            if unit == 3 and not arrived.is_set():
                loop.call_soon_threadsafe(inside.set)
                assert arrived.wait(60)

        device.on_unit = hold
        slow = asyncio.create_task(collect(client, ask(1, prompt(1, 900), 5)))
        await inside.wait()
        urgent = msgspec.structs.replace(ask(2, prompt(2, 30), 5), deadline_s=1.0)
        quick = asyncio.create_task(collect(client, urgent))
        while (await client.stats()).waiting == 0:
            pass
        arrived.set()
        assert (await quick)[0] == PageDevice().continuation(prompt(2, 30), 5)
        assert (await slow)[0] == PageDevice().continuation(prompt(1, 900), 5)

    run(serve(build, work))
    sink.close()
    entries = [read_entry(record) for record in list(read_records(tmp_path, "run"))[1:]]
    commands = [command for entry in entries for command in entry.commands]
    assert any(isinstance(command, Interrupt) for command in commands)
    opens = [span for entry in entries for span in getattr(getattr(entry.event, "report", None), "opens", ())]
    assert [(span.sequence, span.begin, span.end) for span in opens] == [(1, 0, 900)]
    assert 0 < opens[0].unit < device.units
    first = next(delta.request for command in commands if isinstance(command, Emit) for delta in command.deltas)
    assert first == 2


def test_log_files_rotate_and_the_oldest_go(tmp_path) -> None:
    files = EventLogFiles(tmp_path, "run", total_bytes=400_000)
    record = bytes(1000)
    for _ in range(1000):
        files.append(record)
    files.close()
    left = sorted(tmp_path.iterdir())
    assert sum(path.stat().st_size for path in left) <= 400_000 + 70_000
    assert left[0].name != "run-000000.kvlog"
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in left)
    assert set(read_records(tmp_path, "run")) == {record}


def test_a_log_cut_short_is_read_up_to_the_cut(tmp_path) -> None:
    files = EventLogFiles(tmp_path, "run")
    files.append(b"first")
    files.append(b"second")
    files.close()
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-3])
    assert list(read_records(tmp_path, "run")) == [b"first"]


def test_a_full_disk_ends_the_log_and_nothing_else() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    files = EventLogFiles.__new__(EventLogFiles)
    files._buffer, files._written, files._file_bytes, files.failure = bytearray(), 0, 1 << 20, None
    files._file = full.open("wb", buffering=0)
    files.append(b"record")
    files.flush()
    assert files.failure is not None
    files.append(b"another")
    files.flush()
    files._file.close()


def test_logs_of_earlier_runs_go_when_they_are_too_many(tmp_path) -> None:
    for number in range(4):
        files = EventLogFiles(tmp_path, f"run{number}", total_bytes=5000)
        files.append(bytes(2000))
        files.close()
        for path in tmp_path.glob(f"run{number}-*"):
            os.utime(path, (number, number))
    EventLogFiles(tmp_path, "last", total_bytes=5000).close()
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == ["last", "run2", "run3"]
