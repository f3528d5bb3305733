"""The ASGI application: one table of routes, one gate before them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvern.core.errors import KvernError
from kvern.core.ports import EngineClient
from kvern.server import chat, completions, models, status, tokens
from kvern.server.errors import error_response, failure, failure_of
from kvern.server.gate import Gate
from kvern.server.metrics import ServerMetrics
from kvern.server.options import ServerOptions
from kvern.server.service import Service
from kvern.weights.chat_template import ChatTemplate
from kvern.weights.tokenizer import Tokenizer


class RouteSpec(NamedTuple):
    method: str
    path: str
    endpoint: Callable[[Request], Awaitable[Response]]


ROUTES = (
    RouteSpec("POST", "/v1/chat/completions", chat.chat_completions),
    RouteSpec("POST", "/v1/completions", completions.completions),
    RouteSpec("GET", "/v1/models", models.list_models),
    RouteSpec("GET", "/v1/models/{name:path}", models.show_model),
    RouteSpec("GET", "/v1/limits", models.limits),
    RouteSpec("POST", "/tokenize", tokens.tokenize),
    RouteSpec("POST", "/detokenize", tokens.detokenize),
    RouteSpec("GET", "/health", status.healthy),
    RouteSpec("GET", "/ping", status.healthy),
    RouteSpec("GET", "/livez", status.live),
    RouteSpec("GET", "/readyz", status.healthy),
    RouteSpec("GET", "/metrics", status.metrics),
    RouteSpec("GET", "/version", models.version),
)


def make_app(
    client: EngineClient, tokenizer: Tokenizer, template: ChatTemplate | None, options: ServerOptions
) -> Starlette:
    """The server over a started engine. Starting and closing ``client`` and ``template`` is the caller's.

    ``template`` None refuses chats (a base model). All state of the server is in ``app.state.service``.
    """
    metrics = ServerMetrics(options.model_names[0])
    app = Starlette(
        routes=[Route(spec.path, spec.endpoint, methods=[spec.method]) for spec in ROUTES],
        middleware=[
            Middleware(Gate, options=options, metrics=metrics, routes=frozenset(spec.path for spec in ROUTES))
        ],
        exception_handlers={KvernError: _kvern_error, HTTPException: _http_error},
    )
    app.state.service = Service(client, tokenizer, template, options, metrics, int(options.now()))
    return app


async def _kvern_error(_request: Request, error: Exception) -> Response:
    return error_response(failure_of(error))


async def _http_error(request: Request, error: Exception) -> Response:
    """The framework's own: no such path, or not with this method."""
    code = error.status_code if isinstance(error, HTTPException) else 500
    path = request.url.path[:100]
    if code == 404:
        return error_response(failure(404, f"there is no {path!r} here", code="not_found"))
    if code == 405:
        answer = error_response(
            failure(405, f"{request.method} is not allowed on {path!r}", code="method_not_allowed")
        )
        answer.headers.update(getattr(error, "headers", None) or {})
        return answer
    return error_response(failure(code, "the request cannot be served"))
