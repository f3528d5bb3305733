"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kvern.core.errors import InvalidRequest
from kvern.core.request import Sampling
from kvern.sampling_params import ModelLimits, check_prompt
from kvern.server.answers import CompletionAnswer, CompletionChoice, Usage, usage
from kvern.server.fields import CompletionRequest, refuse_unsupported
from kvern.server.generation import Piece, follow, merged
from kvern.server.json_body import read_body
from kvern.server.logprobs import CompletionColumns, CompletionLogprobs
from kvern.server.sampling import Wanted, read_sampling, samplings
from kvern.server.service import Service
from kvern.server.sse import EventStream, unless_gone


async def completions(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await read_body(request, CompletionRequest, service.options.limits)
    job = await unless_gone(request, _prepare(service, body))
    if body.stream:
        return EventStream(job.chunks(), service.options.ping_interval_s)
    answer = await unless_gone(request, job.answer())
    return Response(msgspec.json.encode(answer), media_type="application/json")


class _Prompt(msgspec.Struct, frozen=True):
    ids: tuple[int, ...]
    text: str  # as the client sent it, or decoded


async def _prepare(service: Service, body: CompletionRequest) -> _CompletionJob:
    """Check everything that can be checked before the engine is asked. Raises InvalidRequest."""
    model = service.check_model(body.model)
    refuse_unsupported(body)
    limits, echo = service.options.limits, bool(body.echo)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream: true", field="stream_options", code="invalid_value")
    if body.logprobs is not None and not 0 <= body.logprobs <= limits.logprobs:
        raise InvalidRequest(
            f"logprobs is {body.logprobs}; it must be from 0 to {limits.logprobs}",
            field="logprobs",
            code="invalid_value",
        )
    wanted = read_sampling(
        body,
        service.options,
        max_tokens=("max_tokens", 16 if body.max_tokens is None else body.max_tokens),
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if echo else None,
    )
    if wanted.max_tokens == 0 and not echo:
        raise InvalidRequest(
            "max_tokens is 0; without echo it must be at least 1", field="max_tokens", code="invalid_value"
        )
    given = _split_prompts(body.prompt, limits.prompts)
    if len(given) * wanted.params.n > limits.sequences:
        raise InvalidRequest(
            f"{len(given)} prompts times n {wanted.params.n} is over the limit of {limits.sequences} sequences",
            field="n",
            code="invalid_value",
        )
    prompts = [await _read_prompt(service, item, body.add_special_tokens is not False) for item in given]
    return _CompletionJob(service, body, wanted, model, prompts)


def _split_prompts(prompt: str | list[Any], most: int) -> list[str | list[int]]:
    """A text, token ids, or a list of either. Raises InvalidRequest for any other mixture."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest(
            "prompt is an empty list; send at least one token or text", field="prompt", code="invalid_value"
        )
    if all(_is_id(item) for item in prompt):
        return [prompt]
    if len(prompt) > most:
        raise InvalidRequest(
            f"prompt has {len(prompt)} entries; at most {most} may be sent", field="prompt", code="invalid_value"
        )
    if all(isinstance(item, str) for item in prompt):
        return prompt
    if all(isinstance(item, list) and all(_is_id(token) for token in item) for item in prompt):
        return prompt
    raise InvalidRequest(
        "prompt must be a text, a list of token ids, a list of texts, or a list of lists of token ids",
        field="prompt",
        code="invalid_type",
    )


def _is_id(item: object) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


async def _read_prompt(service: Service, given: str | list[int], add_special: bool) -> _Prompt:
    limits = service.model_limits()
    if isinstance(given, str):
        ids = await service.encode_prompt(given, "prompt", add_special=add_special)
        check_prompt(ids, limits)
        return _Prompt(tuple(ids), given)
    check_prompt(given, limits)
    return _Prompt(tuple(given), service.tokenizer.decode(given, skip_special=False))


class _CompletionJob:
    """One checked request: prompts times n sequences, and the two forms of their answer."""

    def __init__(
        self, service: Service, body: CompletionRequest, wanted: Wanted, model: str, prompts: list[_Prompt]
    ) -> None:
        self._service, self._wanted, self._model, self._prompts = service, wanted, model, prompts
        self._echo = bool(body.echo)
        self._with_usage = bool(body.stream_options and body.stream_options.include_usage)
        limits = service.model_limits()
        self._sequences = self._plan(limits)
        self._id = service.answer_id("cmpl")
        self._created = int(service.options.now())
        self._fingerprint = service.fingerprint()
        self._cached = [0] * len(prompts)
        self._generated = 0
        top = wanted.params.logprobs
        self._columns = None if top is None else [CompletionColumns(service.tokenizer, top) for _ in self._sequences]
        self._echoed: set[int] = set()

    def _plan(self, limits: ModelLimits) -> list[tuple[_Prompt, Sampling]]:
        """All choices of the first prompt, then of the second, ...; their order is the answer's."""
        return [
            (prompt, sampling) for prompt in self._prompts for sampling in samplings(self._wanted, prompt.ids, limits)
        ]

    async def _pieces(self) -> AsyncGenerator[Piece, None]:
        if self._wanted.max_tokens == 0 and self._wanted.params.logprobs is None:
            for index in range(len(self._sequences)):  # an echo of the prompt: nothing to compute
                yield Piece(index, "", (), finish="length")
            return
        streams = [
            follow(self._service, prompt.ids, sampling, self._wanted, index)
            for index, (prompt, sampling) in enumerate(self._sequences)
        ]
        async with aclosing(merged(streams)) as pieces:
            async for piece in pieces:
                yield piece

    def _usage(self) -> Usage:
        return usage(sum(len(prompt.ids) for prompt in self._prompts), self._generated, sum(self._cached))

    def _take(self, piece: Piece) -> tuple[str, CompletionLogprobs | None]:
        """Count a piece; its text and logprobs, behind the prompt's where that is echoed."""
        self._generated += len(piece.tokens)
        which, choice = divmod(piece.index, self._wanted.params.n)
        if choice == 0:
            self._cached[which] = max(self._cached[which], piece.cached_tokens)
        first = self._echo and piece.index not in self._echoed
        self._echoed.add(piece.index)
        prompt = self._prompts[which]
        text = prompt.text + piece.text if first else piece.text
        if self._columns is None:
            return text, None
        tokens = prompt.ids + piece.tokens if first else piece.tokens
        found = piece.prompt_logprobs + piece.logprobs if first else piece.logprobs
        return text, self._columns[piece.index].add(tokens, found)

    async def answer(self) -> CompletionAnswer:
        """The whole answer at once."""
        choices = [
            CompletionChoice(index, "", None if self._columns is None else CompletionLogprobs([], [], [], []))
            for index in range(len(self._sequences))
        ]
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                text, rows = self._take(piece)
                choice = choices[piece.index]
                choice.text += text
                if rows is not None:
                    _extend(choice.logprobs, rows)
                if piece.finish is not None:
                    choice.finish_reason, choice.stop_reason = piece.finish, piece.stop_reason
        return self._body(choices, self._usage())

    async def chunks(self) -> AsyncGenerator[CompletionAnswer, None]:
        """The same answer in chunks: text, an empty one with the finish reason, then the usage if asked."""
        quiet = None if self._with_usage else msgspec.UNSET
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                text, rows = self._take(piece)
                if text or (rows is not None and rows.tokens):
                    yield self._body([CompletionChoice(piece.index, text, rows)], quiet)
                if piece.finish is not None:
                    end = CompletionChoice(piece.index, "", None, piece.finish)
                    if piece.stop_reason is not None:
                        end.stop_reason = piece.stop_reason
                    yield self._body([end], quiet)
        if self._with_usage:
            yield self._body([], self._usage())

    def _body(self, choices: list[CompletionChoice], counted: Usage | msgspec.UnsetType | None) -> CompletionAnswer:
        return CompletionAnswer(self._id, self._created, self._model, choices, self._fingerprint, usage=counted)


def _extend(into: CompletionLogprobs, rows: CompletionLogprobs) -> None:
    into.text_offset += rows.text_offset
    into.token_logprobs += rows.token_logprobs
    into.tokens += rows.tokens
    into.top_logprobs += rows.top_logprobs
