"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kvern.core.errors import InvalidRequest
from kvern.server.answers import (
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    Message,
    Usage,
    usage,
)
from kvern.server.fields import ChatMessage, ChatRequest, refuse_unsupported
from kvern.server.generation import Piece, follow, merged
from kvern.server.json_body import read_body
from kvern.server.logprobs import ChatLogprobs, chat_logprobs
from kvern.server.options import Limits
from kvern.server.sampling import Wanted, read_sampling, renamed, samplings
from kvern.server.service import Service
from kvern.server.sse import EventStream, unless_gone

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_RESERVED = frozenset(("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"))


async def chat_completions(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_body(request, ChatRequest, service.options.limits)
    job = await unless_gone(request, _prepare(service, body))
    if body.stream:
        return EventStream(job.chunks(), service.options.ping_interval_s)
    answer = await unless_gone(request, job.answer())
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def _prepare(service: Service, body: ChatRequest) -> _ChatJob:
    """Check everything that can be checked before the engine is asked. Raises InvalidRequest."""
    model = service.check_model(body.model)
    refuse_unsupported(body)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", field="stream_options", code="invalid_value")
    top = _top_logprobs(body, service.options.limits)
    named = ("max_completion_tokens", body.max_completion_tokens)
    wanted = read_sampling(
        body,
        service.options,
        max_tokens=named if body.max_completion_tokens is not None else ("max_tokens", body.max_tokens),
        logprobs=top,
    )
    if wanted.max_tokens == 0:
        raise InvalidRequest(
            f"{wanted.length_field} must be at least 1", field=wanted.length_field, code="invalid_value"
        )
    prompt = await chat_prompt(service, body)
    return _ChatJob(service, body, wanted, model, tuple(prompt))


def _top_logprobs(body: ChatRequest, limits: Limits) -> int | None:
    top = body.top_logprobs
    if top is not None and not 0 <= top <= limits.logprobs:
        raise InvalidRequest(
            f"top_logprobs is {top}; it must be from 0 to {limits.logprobs}",
            field="top_logprobs",
            code="invalid_value",
        )
    if top and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", field="top_logprobs", code="invalid_value")
    return (top or 0) if body.logprobs else None


async def chat_prompt(service: Service, body: ChatRequest) -> list[int]:
    """Token ids of the conversation, as the model's template writes it. Raises InvalidRequest."""
    if service.template is None:
        raise InvalidRequest(
            "this model has no chat template (a base model?); use /v1/completions or start with --chat-template FILE",
            field="messages",
            code="no_chat_template",
        )
    messages = _messages(body.messages, service.options.limits)
    extra = body.chat_template_kwargs or {}
    if len(extra) > service.options.limits.template_variables:
        raise InvalidRequest(
            f"chat_template_kwargs has {len(extra)} entries; at most {service.options.limits.template_variables}",
            field="chat_template_kwargs",
            code="invalid_value",
        )
    if reserved := _RESERVED & extra.keys():
        raise InvalidRequest(
            f"chat_template_kwargs must not set {min(reserved)}", field="chat_template_kwargs", code="invalid_value"
        )
    generation = body.add_generation_prompt is not False
    text = await asyncio.to_thread(service.template.render, messages, add_generation_prompt=generation, extra=extra)
    # The template writes the start token itself, as in the reference; adding ours would double it.
    return await service.encode_prompt(text, "messages", add_special=False)


def _messages(messages: list[ChatMessage], limits: Limits) -> list[dict[str, Any]]:
    if not 0 < len(messages) <= limits.messages:
        raise InvalidRequest(
            f"messages has {len(messages)} entries; it must have 1 to {limits.messages}",
            field="messages",
            code="invalid_value",
        )
    plain = []
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        refuse_unsupported(message, f"{place}.")
        role = _ROLES.get(message.role)
        if role is None:
            raise InvalidRequest(
                f"{place}.role is {message.role[:40]!r}; supported: {', '.join(_ROLES)}",
                field=f"{place}.role",
                code="invalid_value",
            )
        entry = {"role": role, "content": _content(message, place)}
        if message.name is not None:
            entry["name"] = message.name
        plain.append(entry)
    return plain


def _content(message: ChatMessage, place: str) -> str:
    """The text of a message; several text parts are joined by line breaks."""
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        raise InvalidRequest(f"{place}.content is missing", field=f"{place}.content", code="missing_field")
    texts = []
    for index, part in enumerate(content):
        field = f"{place}.content[{index}]"
        if part.get("type") not in ("text", "input_text"):
            raise InvalidRequest(
                f"{field}.type is {str(part.get('type'))[:40]!r}; only 'text' is supported",
                field=f"{field}.type",
                code="unsupported_field",
            )
        if not isinstance(part.get("text"), str) or part.keys() - {"type", "text"}:
            raise InvalidRequest(
                f"{field} must hold `type` and a string `text` only", field=field, code="invalid_type"
            )
        texts.append(part["text"])
    return "\n".join(texts)


class _ChatJob:
    """One checked request: its prompt, its sequences, and the two forms of its answer."""

    def __init__(
        self, service: Service, body: ChatRequest, wanted: Wanted, model: str, prompt: tuple[int, ...]
    ) -> None:
        self._service, self._wanted, self._model, self._prompt = service, wanted, model, prompt
        self._with_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._top = wanted.params.logprobs
        try:
            self._samplings = samplings(wanted, prompt, service.model_limits())
        except InvalidRequest as error:
            raise renamed(error, {"prompt": "messages"}) from error
        self._id = service.answer_id("chatcmpl")
        self._created = int(service.options.now())
        self._fingerprint = service.fingerprint()
        self._cached = 0
        self._generated = 0

    def _pieces(self) -> AsyncGenerator[Piece, None]:
        streams = [
            follow(self._service, self._prompt, sampling, self._wanted, sampling.choice)
            for sampling in self._samplings
        ]
        return merged(streams)

    def _count(self, piece: Piece) -> None:
        self._generated += len(piece.tokens)
        if piece.index == 0:
            self._cached = max(self._cached, piece.cached_tokens)

    def _usage(self) -> Usage:
        return usage(len(self._prompt), self._generated, self._cached)

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        if self._top is None or not piece.logprobs:
            return None
        return chat_logprobs(self._service.tokenizer, piece.logprobs, self._top)

    async def answer(self) -> ChatAnswer:
        """The whole answer at once."""
        texts = [""] * len(self._samplings)
        found = [ChatLogprobs([]) if self._top is not None else None for _ in self._samplings]
        ends: list[Piece | None] = [None] * len(self._samplings)
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                self._count(piece)
                texts[piece.index] += piece.text
                rows, into = self._logprobs(piece), found[piece.index]
                if rows is not None and into is not None:
                    into.content += rows.content
                if piece.finish is not None:
                    ends[piece.index] = piece
        choices = [
            ChatChoice(index, Message(texts[index]), found[index], end.finish or "stop", end.stop_reason)
            for index, end in enumerate(ends)
            if end is not None
        ]
        return ChatAnswer(self._id, self._created, self._model, choices, self._usage(), self._fingerprint)

    async def chunks(self) -> AsyncGenerator[ChatChunk, None]:
        """The same answer in chunks: role, text, an empty one with the finish reason, then the usage if asked."""
        greeted: set[int] = set()
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                self._count(piece)
                if piece.index not in greeted:
                    greeted.add(piece.index)
                    yield self._chunk(ChatChunkChoice(piece.index, ChatDelta("assistant", "")))
                found = self._logprobs(piece)
                if piece.text or found is not None:
                    yield self._chunk(ChatChunkChoice(piece.index, ChatDelta(content=piece.text), found))
                if piece.finish is not None:
                    end = ChatChunkChoice(piece.index, ChatDelta(), finish_reason=piece.finish)
                    if piece.stop_reason is not None:
                        end.stop_reason = piece.stop_reason
                    yield self._chunk(end)
        if self._with_usage:
            last = self._chunk()
            last.usage = self._usage()
            yield last

    def _chunk(self, *choices: ChatChunkChoice) -> ChatChunk:
        chunk = ChatChunk(self._id, self._created, self._model, list(choices), self._fingerprint)
        if self._with_usage:
            chunk.usage = None
        return chunk
