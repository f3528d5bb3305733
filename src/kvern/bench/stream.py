"""A small streaming HTTP/1.1 client on asyncio: it must cost little, as it runs on the cores it measures."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MAX_LINE = 1 << 20  # bytes of one header or SSE line; more is an error, not memory


class BenchError(Exception):
    """The server answered with something else than asked for; the message says what."""


@dataclass(frozen=True)
class Target:
    """Where requests go: the base URL (``http://127.0.0.1:8000``) and an optional bearer key."""

    url: str
    api_key: str | None = None
    timeout_s: float = 600.0


def _head(target: Target, method: str, path: str, body: bytes) -> bytes:
    parts = urlsplit(target.url)
    lines = [f"{method} {parts.path.rstrip('/')}{path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "Accept: */*"]
    if target.api_key:
        lines.append(f"Authorization: Bearer {target.api_key}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


async def _open(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(target.url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise BenchError(f"{target.url!r} is not an http:// or https:// address")
    secure = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if secure else 80)
    try:
        return await asyncio.open_connection(parts.hostname, port, ssl=secure, limit=MAX_LINE)
    except OSError as error:
        raise BenchError(f"cannot reach {target.url}: {error}") from error


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    status_line = (await reader.readline()).decode("latin-1").split(" ", 2)
    if len(status_line) < 2 or not status_line[1].isdigit():
        raise BenchError("the server closed the connection without an answer")
    headers: dict[str, str] = {}
    while (line := (await reader.readline()).strip()) != b"":
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(status_line[1]), headers


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
            yield await reader.readexactly(size)
            await reader.readline()
    elif "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
    else:
        while piece := await reader.read(65536):
            yield piece


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > MAX_LINE:
            raise BenchError(f"a line of the stream is longer than {MAX_LINE} bytes")
        for line in whole:
            yield line
    if rest:
        yield rest


async def fetch(target: Target, method: str, path: str, payload: Any = None) -> tuple[int, bytes]:
    """One whole answer: status and body. Raises BenchError, TimeoutError."""
    body = b"" if payload is None else json.dumps(payload).encode()
    async with asyncio.timeout(target.timeout_s):
        reader, writer = await _open(target)
        try:
            writer.write(_head(target, method, path, body))
            await writer.drain()
            status, headers = await _answer(reader)
            return status, b"".join([piece async for piece in _body(reader, headers)])
        finally:
            writer.close()


async def events(target: Target, path: str, payload: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The ``data:`` events of a streamed answer, parsed, up to ``[DONE]``.

    Raises BenchError (another status than 200, an error event, a stream cut short), TimeoutError.
    """
    async with asyncio.timeout(target.timeout_s):
        reader, writer = await _open(target)
        try:
            writer.write(_head(target, "POST", path, json.dumps(payload).encode()))
            await writer.drain()
            status, headers = await _answer(reader)
            if status != 200:
                text = b"".join([piece async for piece in _body(reader, headers)])[:500]
                raise BenchError(f"HTTP {status}: {text.decode('utf-8', 'replace')}")
            async for line in _lines(_body(reader, headers)):
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise BenchError(f"error in the stream: {event['error']}")
                yield event
            raise BenchError("the stream ended without [DONE]")
        except asyncio.IncompleteReadError as error:
            raise BenchError("the connection was cut in the middle of an answer") from error
        finally:
            writer.close()
