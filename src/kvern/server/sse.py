"""Answers that notice when their client leaves: server-sent events, and plain ones."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kvern.server.errors import error_response, failure_of
from kvern.server.json_body import ClientGone

logger = logging.getLogger("kvern.server")

_DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_Result = TypeVar("_Result")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def unless_gone(request: Request, work: Awaitable[_Result]) -> _Result:
    """The result of ``work``; it is cancelled, and ClientGone raised, when the client leaves first."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await _end(task, watcher)


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class EventStream(Response):
    """Server-sent events from a generator of chunks (anything msgspec encodes).

    The answer begins with the first chunk: an error before that is an ordinary error answer, a later one an event
    with ``error`` after which the stream ends without ``[DONE]``. Silence is filled with comments. When the client
    leaves, the generator is closed at once.
    """

    def __init__(self, chunks: AsyncGenerator[msgspec.Struct, None], ping_interval_s: float) -> None:
        self._chunks = chunks
        self._ping_interval_s = ping_interval_s
        self._last_sent = 0.0  # on the loop's clock
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = asyncio.ensure_future(self._write(scope, receive, send))
        watcher = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({writer, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
        finally:
            await _end(writer, watcher)

    async def _write(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._chunks) as chunks:
            try:
                first = await anext(chunks)
            except Exception as error:
                await error_response(failure_of(error))(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            pinger = asyncio.ensure_future(self._ping(send))
            try:
                await self._event(send, msgspec.json.encode(first))
                async for chunk in chunks:
                    await self._event(send, msgspec.json.encode(chunk))
                last = _DONE
            except Exception as error:
                last = b"data: " + failure_of(error).body() + b"\n\n"
            finally:
                await _end(pinger)
            await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _event(self, send: Send, data: bytes) -> None:
        self._last_sent = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})

    async def _ping(self, send: Send) -> None:
        """A comment after each interval of silence. Sleeps only: nothing here runs per chunk."""
        loop = asyncio.get_running_loop()
        self._last_sent = loop.time()
        while True:
            quiet_until = self._last_sent + self._ping_interval_s
            if quiet_until > loop.time():
                await asyncio.sleep(quiet_until - loop.time())
                continue
            self._last_sent = loop.time()
            await send({"type": "http.response.body", "body": _PING, "more_body": True})
