"""GET /v1/models, /v1/models/{id}, /v1/limits and /version."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kvern import __version__
from kvern.server.service import Service


class ModelMeta(msgspec.Struct):
    """What is particular to kvern."""

    vocab_size: int
    weight_format: str
    kv_format: str
    isa: str
    threads: int
    deterministic: bool


class ModelCard(msgspec.Struct):
    id: str
    created: int
    root: str
    max_model_len: int  # tokens, prompt and output together
    meta: ModelMeta
    owned_by: str = "kvern"
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: Literal["list"] = "list"


def _card(service: Service, name: str) -> ModelCard:
    info = service.client.info
    meta = ModelMeta(info.vocab_size, info.weight_format, info.kv_format, info.isa, info.threads, info.deterministic)
    return ModelCard(name, service.started_at, info.model, info.max_context, meta)


async def list_models(request: Request) -> Response:
    service: Service = request.app.state.service
    return _json(ModelList([_card(service, name) for name in service.options.model_names]))


async def show_model(request: Request) -> Response:
    service: Service = request.app.state.service
    return _json(_card(service, service.check_model(request.path_params["name"])))


async def limits(request: Request) -> Response:
    service: Service = request.app.state.service
    return _json(service.options.limits)


async def version(_request: Request) -> Response:
    return _json({"version": __version__})


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
