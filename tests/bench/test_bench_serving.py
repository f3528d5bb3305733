"""The load client against a small real HTTP server that answers as servers of the field do, well and badly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from kvern.bench.load import Call, Shape, random_calls
from kvern.bench.serving import run, served_model
from kvern.bench.stream import BenchError, Target, fetch
from kvern.bench.summary import Summary

MODELS = json.dumps({"data": [{"id": "tiny"}]}).encode()


@dataclass
class Script:
    """What the server says. ``cached`` None leaves the field out, as servers without prefix caching do."""

    cached: int | None = 0
    metrics: bytes | None = None
    tokens: int = 4
    status: int = 200
    cut: bool = False
    error_event: bool = False
    split: int | None = None  # bytes per chunk, to cut lines in the middle
    bodies: list[dict[str, Any]] = field(default_factory=list)
    hold: asyncio.Event | None = None  # answers wait for it


def chunked(data: bytes, size: int) -> bytes:
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


def plain(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


def stream_of(script: Script, body: dict[str, Any]) -> bytes:
    usage: dict[str, Any] = {"prompt_tokens": len(body["prompt"]), "completion_tokens": script.tokens}
    if script.cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": script.cached}
    events: list[dict[str, Any]] = [{"choices": [{"text": f"t{i} "}]} for i in range(script.tokens)]
    events += [{"choices": [{"text": "", "finish_reason": "length"}]}, {"choices": [], "usage": usage}]
    if script.error_event:
        events = [events[0], {"error": {"message": "engine died"}}]
    text = b": ping\n\n" + b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    text += b"" if script.error_event else b"data: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    if script.cut:
        return head + chunked(text, 50)[:150]
    return head + chunked(text, script.split or len(text)) + b"0\r\n\r\n"


async def serve(script: Script, use: Callable[[Target], Awaitable[Any]]) -> Any:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(
            next(line.split(":")[1] for line in head.split("\r\n") if line.lower().startswith("content-length"))
        )
        body = json.loads(await reader.readexactly(length)) if length else {}
        path = head.split(" ")[1]
        if path == "/v1/models":
            writer.write(plain(200, MODELS))
        elif path == "/metrics":
            writer.write(plain(404, b"") if script.metrics is None else plain(200, script.metrics))
        elif script.status != 200:
            writer.write(plain(script.status, b'{"error":{"message":"busy"}}'))
        else:
            script.bodies.append(body)
            if script.hold is not None:
                await script.hold.wait()
            writer.write(stream_of(script, body))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        return await use(Target(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_s=20))


def drive(script: Script, calls: list[Call] | None = None) -> Summary:
    wanted = random_calls(5, 0, Shape(prompt=8, output=4), seed=1) if calls is None else calls
    return asyncio.run(serve(script, lambda target: run(target, wanted)))


def test_counts_latencies_and_hit_rate_come_out() -> None:
    summary = drive(Script(cached=2))
    assert (summary.requests, summary.failed) == (5, 0)
    assert (summary.prompt_tokens, summary.output_tokens) == (40, 20)
    assert (summary.hit_rate, summary.hit_rate_source) == (0.25, "usage")
    assert summary.withheld is None and summary.output_per_s is not None and summary.output_per_s > 0
    assert summary.ttft_ms is not None and summary.e2e_ms is not None
    assert 0 < summary.ttft_ms.p50 <= summary.e2e_ms.max


def test_lines_cut_anywhere_are_put_together() -> None:
    assert drive(Script(split=7)).output_tokens == 20


def test_no_throughput_without_a_hit_rate() -> None:
    summary = drive(Script(cached=None))
    assert summary.failed == 0 and summary.ttft_ms is not None
    assert (summary.output_per_s, summary.total_per_s, summary.requests_per_s) == (None, None, None)
    assert summary.withheld is not None and "cached" in summary.withheld


def test_counters_stand_in_for_usage() -> None:
    counters = (
        b'vllm:prefix_cache_queries_total{model_name="t"} 100\nvllm:prefix_cache_hits_total{model_name="t"} 25\n'
    )
    script = Script(cached=None, metrics=counters)
    summary = drive(script)
    # The counters did not move during this run: nothing was looked up, so nothing may be concluded.
    assert summary.withheld is not None


def test_errors_are_counted_and_shown() -> None:
    busy = drive(Script(status=503))
    assert (busy.failed, busy.output_per_s) == (5, None) and "HTTP 503" in busy.errors[0]
    assert "cut" in drive(Script(cut=True)).errors[0]
    assert "engine died" in drive(Script(error_event=True)).errors[0]


def test_an_absent_server_is_an_error() -> None:
    async def nobody() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        await served_model(Target(f"http://127.0.0.1:{port}"))

    with pytest.raises(BenchError, match="cannot reach"):
        asyncio.run(nobody())


def test_a_bad_address_is_an_error() -> None:
    with pytest.raises(BenchError, match="not an http"):
        asyncio.run(fetch(Target("ftp://x"), "GET", "/"))


def test_the_loop_is_open() -> None:
    """All requests leave although the server answers none of them before the last has come in."""

    async def check() -> Summary:
        script = Script(hold=asyncio.Event())
        calls = [Call(0.01 * i, {"prompt": [1, 2], "max_tokens": 4}) for i in range(6)]

        async def use(target: Target) -> Summary:
            running = asyncio.create_task(run(target, calls))
            while len(script.bodies) < len(calls):
                await asyncio.wait({running}, timeout=0.01)
            assert script.hold is not None
            script.hold.set()
            return await running

        return await serve(script, use)

    summary = asyncio.run(asyncio.wait_for(check(), 20))
    assert (summary.requests, summary.failed) == (6, 0)
