"""HTTP GET with care: bounded answers, resumed downloads, and a token that never leaves the host it is meant for."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from kvern import __version__
from kvern.core.errors import ModelFileError

_TIMEOUT_S = 30.0  # of one wait for the network, not of a whole download
_ATTEMPTS = 5  # without any progress
_PAUSE_S = 1.0  # longer after each attempt in vain
_CHUNK = 1 << 18
_CONTENT_RANGE = re.compile(r"bytes (\d+)-")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http, and without the token on another host."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme != "https"):
            raise ModelFileError(f"{req.full_url}: redirected to {new.scheme}, which is not followed")
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            made.remove_header("Authorization")
        return made


class Client:
    """Speaks to one endpoint. ``token`` is sent to it as a bearer token, and to no other host."""

    def __init__(self, endpoint: str, token: str | None) -> None:
        if urlsplit(endpoint).scheme not in ("http", "https"):
            raise ModelFileError(f"HF_ENDPOINT {endpoint!r:.200} is not an http or https address")
        self._token = token
        self._opener = urllib.request.build_opener(_Redirects)

    def read(self, url: str, limit: int) -> bytes:
        """The body of an answer of at most ``limit`` bytes. Raises ModelFileError."""
        try:
            with self._open(url, {}) as answer:
                body = bytes(answer.read(limit + 1))
        except (OSError, http.client.HTTPException) as error:
            raise _failure(url, error) from error
        if len(body) > limit:
            raise ModelFileError(f"{url}: the answer is longer than {limit} bytes")
        return body

    def download(self, url: str, part: Path, size: int, grown: Callable[[int], None]) -> None:
        """Bring ``part`` to exactly ``size`` bytes, going on where an earlier attempt stopped."""
        stalled = 0  # attempts in a row that brought nothing
        while True:
            have = _usable(part, size)
            if have == size and part.exists():
                return
            reason: Exception = ValueError("the answer ended early")
            try:
                self._append(url, part, have, size, grown)
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                    raise _failure(url, error) from error
                reason = error
                time.sleep(_PAUSE_S * stalled)
            stalled = 0 if _usable(part, size) > have else stalled + 1
            if stalled >= _ATTEMPTS and _usable(part, size) != size:
                raise _failure(url, reason) from reason

    def _append(self, url: str, part: Path, have: int, size: int, grown: Callable[[int], None]) -> None:
        wanted = {"Range": f"bytes={have}-"} if have else {}
        with self._open(url, wanted) as answer:
            resumed = answer.status == 206 and _starts_at(answer.headers.get("Content-Range", "")) == have
            if answer.status == 206 and not resumed:
                raise OSError("the server sent another range than the one asked for")
            at = have if resumed else 0
            with part.open("ab" if resumed else "wb") as file:
                while at < size and (chunk := answer.read(min(_CHUNK, size - at))):
                    file.write(chunk)
                    at += len(chunk)
                    grown(at)
            if at == size and answer.read(1):
                part.unlink()
                raise ModelFileError(f"{url}: is longer than the {size} bytes that were announced")

    def _open(self, url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        headers = {"User-Agent": f"kvern/{__version__}", "Accept-Encoding": "identity", **headers}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 (the scheme is checked in __init__)
        answer: http.client.HTTPResponse = self._opener.open(request, timeout=_TIMEOUT_S)
        return answer


def _usable(part: Path, size: int) -> int:
    """Bytes that an earlier attempt left; a file that is too long is not one of its beginnings and goes."""
    have = part.stat().st_size if part.exists() else 0
    if have > size:
        part.unlink()
        return 0
    return have


def _starts_at(content_range: str) -> int | None:
    match = _CONTENT_RANGE.match(content_range)
    return int(match[1]) if match else None


def _failure(url: str, error: Exception) -> ModelFileError:
    """A message that says what to do about the usual refusals."""
    if isinstance(error, urllib.error.HTTPError):
        hints = {
            401: "; set HF_TOKEN to a token that may read it, and check the name",
            403: "; accept the model's terms on its page, and set HF_TOKEN",
            404: "; check the name and the revision",
        }
        return ModelFileError(f"{url}: the server answered {error.code}{hints.get(error.code, '')}")
    return ModelFileError(f"{url}: cannot be fetched ({error})")
