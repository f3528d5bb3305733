"""POST /tokenize and /detokenize: what the model sees of a text or a conversation, and back."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kvern.core.errors import InvalidRequest
from kvern.server.chat import chat_prompt
from kvern.server.fields import ChatMessage, ChatRequest
from kvern.server.json_body import read_body
from kvern.server.service import Service
from kvern.server.sse import unless_gone


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Either ``prompt`` or ``messages``."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = True
    add_generation_prompt: bool | None = True
    chat_template_kwargs: dict[str, str | bool | int | float | None] | None = None
    return_token_strs: bool | None = False


class TokenizeAnswer(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    tokens: list[int]
    model: str | None = None


class DetokenizeAnswer(msgspec.Struct):
    prompt: str


async def tokenize(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_body(request, TokenizeRequest, service.options.limits)
    service.check_model(body.model)
    ids = await unless_gone(request, _encode(service, body))
    answer = TokenizeAnswer(len(ids), service.client.info.max_context, ids)
    if body.return_token_strs:
        answer.token_strs = [service.tokenizer.token_text(token) for token in ids]
    return _json(answer)


async def _encode(service: Service, body: TokenizeRequest) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("send either prompt or messages", field="prompt", code="missing_field")
    if body.prompt is not None:
        if len(body.prompt) > (most := service.options.limits.tokenize_chars):
            message = f"prompt has {len(body.prompt)} characters; at most {most} are tokenised"
            raise InvalidRequest(message, field="prompt", code="invalid_value")
        return await service.encode(body.prompt, "prompt", add_special=body.add_special_tokens is not False)
    chat = ChatRequest(
        messages=body.messages or [],
        add_generation_prompt=body.add_generation_prompt,
        chat_template_kwargs=body.chat_template_kwargs,
    )
    return await chat_prompt(service, chat)


async def detokenize(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_body(request, DetokenizeRequest, service.options.limits)
    service.check_model(body.model)
    size = service.client.info.vocab_size
    for token in body.tokens:
        if not 0 <= token < size:
            raise InvalidRequest(
                f"tokens holds token id {token}; the ids of this model are 0 to {size - 1}",
                field="tokens",
                code="invalid_value",
            )
    return _json(DetokenizeAnswer(service.tokenizer.decode(body.tokens, skip_special=False)))


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
