"""What stands before every route: keys, origins, request ids, and errors as bodies. Deny by default."""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvern.server.errors import Failure, error_response, failure, failure_of
from kvern.server.json_body import ClientGone
from kvern.server.metrics import ServerMetrics
from kvern.server.options import ServerOptions

# The only paths that need no key. A path that is not here needs one, whether it exists or not.
OPEN_PATHS = frozenset(("/health", "/livez", "/readyz"))

_NOT_IN_ID = re.compile(r"[^A-Za-z0-9._:-]")


class Gate:
    """The outermost ASGI layer of the server."""

    def __init__(self, app: ASGIApp, options: ServerOptions, metrics: ServerMetrics, routes: frozenset[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in options.api_keys]
        self._origins = frozenset(options.allowed_origins)
        self._id_chars = options.limits.request_id_chars
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        headers = Headers(scope=scope)
        request_id = self._label(headers.get("x-request-id", ""))
        state = _Answered()

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                state.status = message["status"]
                MutableHeaders(raw=message.setdefault("headers", [])).append("x-request-id", request_id)
            await send(message)

        refusal = self._refusal(scope["path"], headers)
        try:
            if refusal is not None:
                await error_response(refusal)(scope, receive, labelled)
            else:
                await self._app(scope, receive, labelled)
        except ClientGone:
            state.status = 499  # nobody hears it; the metric does
        except Exception as error:
            told = failure_of(error)
            if state.status == 0:
                await error_response(told)(scope, receive, labelled)
            else:
                raise
        finally:
            self._metrics.answered(self._route(scope), state.status)

    def _label(self, given: str) -> str:
        """The client's id as a label: bounded, and of harmless characters. It names nothing in the server."""
        return _NOT_IN_ID.sub("_", given[: self._id_chars]) or "req-" + secrets.token_hex(8)

    def _route(self, scope: Scope) -> str:
        """The route's pattern: a bounded set of metric labels, whatever paths clients try."""
        route = getattr(scope.get("route"), "path", scope["path"])
        return route if route in self._routes else "other"

    def _refusal(self, path: str, headers: Headers) -> Failure | None:
        origin = headers.get("origin")
        if origin is not None and not self._allowed(origin, headers.get("host", "")):
            return failure(403, f"web pages of {origin[:100]!r} may not use this server", code="origin_not_allowed")
        if path in OPEN_PATHS or not self._keys:
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        offered = key.strip().encode()
        # All keys are compared, each in constant time.
        matches = [hmac.compare_digest(offered, known) for known in self._keys]
        if scheme.lower() == "bearer" and any(matches):
            return None
        return failure(401, "send a valid API key: Authorization: Bearer KEY", code="invalid_api_key")

    def _allowed(self, origin: str, host: str) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        try:
            page = urlsplit(origin)
            return page.netloc == host and _is_an_address(page.hostname or "")
        except ValueError:
            return False


def _is_an_address(name: str) -> bool:
    """Not a name that its owner can make point at this machine (DNS rebinding)."""
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _Answered:
    status = 0
