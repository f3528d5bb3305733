"""Health and metrics. None of these goes through the request queue.

/livez: the server's loop turns. /readyz and /health: the engine's loop turns too (a step or a heartbeat lately).
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from kvern.core.errors import EngineDead
from kvern.core.ports import EngineStats
from kvern.server.service import Service

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def live(_request: Request) -> Response:
    return Response(status_code=200)


async def healthy(request: Request) -> Response:
    service: Service = request.app.state.service
    return Response(status_code=200 if service.client.alive() else 503)


async def metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    stats: EngineStats | None = None
    if service.client.alive():
        try:
            stats = await service.client.stats()
        except EngineDead:
            stats = None
    return Response(service.metrics.text(stats), headers={"content-type": _METRICS_TYPE})
