"""Reading a JSON body: bounded, typed, and with errors that name the field."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from kvern.core.errors import InvalidRequest
from kvern.server.options import Limits

_Body = TypeVar("_Body", bound=msgspec.Struct)

_AT_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `([^`]*)`")


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


async def read_body(request: Request, shape: type[_Body], limits: Limits) -> _Body:
    """Decode the body as ``shape``. Raises InvalidRequest naming the field, or ClientGone."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also keeps web pages out: a browser asks first before it sends JSON to another origin.
        raise InvalidRequest(f"content-type is {kind[:60]!r}; send application/json", code="unsupported_media_type")
    try:
        async with asyncio.timeout(limits.body_seconds):
            data = await _bounded(request, limits.body_bytes)
    except TimeoutError as error:
        raise InvalidRequest(
            f"the body took longer than {limits.body_seconds:g} s to arrive", code="body_timeout"
        ) from error
    return decode_body(data, shape)


async def _bounded(request: Request, max_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > max_bytes:
                raise _too_large(max_bytes)
            parts.append(part)
    except ClientDisconnect as error:
        raise ClientGone from error
    return b"".join(parts)


def _too_large(max_bytes: int) -> InvalidRequest:
    return InvalidRequest(f"the body is over the limit of {max_bytes} bytes", code="body_too_large")


def decode_body(data: bytes, shape: type[_Body]) -> _Body:
    """Decode JSON into ``shape``, strictly: no coercion, no unknown fields. Raises InvalidRequest."""
    try:
        return msgspec.json.decode(data, type=shape)
    except msgspec.ValidationError as error:
        raise _named(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if (place := _lone_surrogate(data)) is not None:
            message = f"{place or 'the body'}: not valid Unicode: a lone surrogate"
            raise InvalidRequest(message, field=place or None, code="invalid_unicode") from error
        raise InvalidRequest(f"the body is not valid JSON: {error}"[:300], code="invalid_json") from error
    except RecursionError as error:
        raise InvalidRequest("the body is nested too deeply", code="invalid_json") from error


def _lone_surrogate(data: bytes) -> str | None:
    """The path of the first text with a lone surrogate in otherwise good JSON; None when that is not the fault."""
    try:
        waiting: list[tuple[str, Any]] = [("", json.loads(data))]
    except (ValueError, RecursionError):
        return None
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            return path
        if isinstance(value, dict):
            for name, item in value.items():
                waiting += [(path, name), (f"{path}.{name}".lstrip("."), item)]
        elif isinstance(value, list):
            waiting += [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    return None


def _named(message: str) -> InvalidRequest:
    """The library's message with its path turned into the field's name."""
    at = _AT_PATH.search(message)
    path = at[1] if at else ""
    said = message[: at.start()] if at else message
    for pattern, code, sentence in (
        (_UNKNOWN, "unknown_field", "unknown field {}"),
        (_MISSING, "missing_field", "{} is missing"),
    ):
        if match := pattern.match(said):
            place = f"{path}.{match[1][:100]}" if path else match[1][:100]
            return InvalidRequest(sentence.format(place), field=place, code=code)
    return InvalidRequest(f"{path or 'the body'}: {said}", field=path or None, code="invalid_type")
