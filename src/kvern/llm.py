"""The Python API: ``LLM(model=...).generate(prompts, SamplingParams(...))``; ``AsyncLLM`` yields deltas."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kvern.assembly.clients import make_client, open_text
from kvern.assembly.engine import EngineOptions
from kvern.core.errors import InvalidRequest
from kvern.core.events import Delta
from kvern.core.plan import TokenLogprobs
from kvern.core.ports import EngineClient, EngineInfo
from kvern.core.request import Request, Sampling
from kvern.progress_bar import ProgressBar
from kvern.sampling_params import ModelLimits, SamplingParams, check_prompt, to_samplings
from kvern.text_stream import TextStream
from kvern.weights.hub import resolve
from kvern.weights.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class Logprob:
    """Natural-log probability of one token under the model's own distribution."""

    logprob: float
    rank: int  # 1 is the most likely
    decoded_token: str


@dataclass
class CompletionOutput:
    """One continuation. ``finish_reason`` is "stop" or "length", "error", or None while it goes on.

    ``stop_reason`` is the stop string or the caller's stop token that ended it. ``logprobs`` has a mapping from token
    to ``Logprob`` for each token of ``token_ids``.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    cumulative_logprob: float | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    error: str | None = None


@dataclass
class RequestOutput:
    """A prompt and its continuations: all of each (``LLM``), or what one of them gained (``AsyncLLM``)."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    cached_tokens: int = 0


class AsyncLLM:
    """A model and its engine, for callers with an event loop. ``async with AsyncLLM(model=...) as llm:`` starts it.

    ``model`` is a path, or the name of a model that ``kvern pull`` has fetched; the other options are the fields of
    ``EngineOptions``. ``embed`` runs the engine in a thread of this process; without it the engine is a process of
    its own, which is restarted should it die. ``start`` raises ConfigError, PlanError or ModelFileError.
    """

    def __init__(
        self,
        model: str,
        *,
        embed: bool = True,
        chat_template: str | None = None,
        progress: bool | None = None,
        **options: Any,
    ) -> None:
        self._bar = ProgressBar("loading", shown=progress, in_bytes=True)
        self._text = open_text(resolve(model), chat_template)
        self.client: EngineClient = make_client(
            EngineOptions.of(model=model, **options), embed=embed, progress=self._bar
        )
        self._numbers = itertools.count(1)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._text.tokenizer

    @property
    def info(self) -> EngineInfo:
        """What the engine says of itself. Raises EngineDead before ``start``."""
        return self.client.info

    async def start(self) -> None:
        with self._bar:
            await self.client.start()

    async def close(self) -> None:
        await self.client.close()
        self._text.close()

    async def set_weight_budget(self, budget: int | None) -> None:
        """Bytes that all weights may take from the next step on, of a model whose weights come in layers (bitstack);
        None: all. Sequences under way go on with keys and values of the weights before. Raises ConfigError."""
        await self.client.set_weight_budget(budget)

    async def __aenter__(self) -> AsyncLLM:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def default_sampling_params(self) -> SamplingParams:
        """What the model's makers suggest, and kvern's defaults where they say nothing."""
        given: dict[str, Any] = dict(self._text.sampling_defaults)
        return SamplingParams(**given)

    async def generate(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncIterator[RequestOutput]:
        """Continue a prompt (text or token ids); each output holds what one choice gained.

        Raises InvalidRequest, Overloaded, EngineDead. Leaving the iterator aborts the request.
        """
        async for output in self._run(prompt, params, add_special=True):
            yield output

    async def chat(self, messages: Messages, params: SamplingParams | None = None) -> AsyncIterator[RequestOutput]:
        """Answer a conversation through the model's chat template. Raises InvalidRequest when it has none."""
        async for output in self._run(self.chat_prompt(messages), params, add_special=False):
            yield output

    def chat_prompt(self, messages: Messages) -> str:
        """The prompt that the model's chat template makes of a conversation."""
        template = self._text.template
        if template is None:
            raise InvalidRequest("this model has no chat template", field="messages", code="no_chat_template")
        return template.render(messages)

    def encode(self, prompt: Prompt, *, add_special: bool = True) -> list[int]:
        """Token ids of a prompt. Raises InvalidRequest."""
        return self.tokenizer.encode(prompt, add_special) if isinstance(prompt, str) else list(prompt)

    async def _run(
        self, prompt: Prompt, params: SamplingParams | None, *, add_special: bool
    ) -> AsyncIterator[RequestOutput]:
        params = params or self.default_sampling_params()
        tokens = self.encode(prompt, add_special=add_special)
        limits = ModelLimits(self.info.vocab_size, self.info.max_context, self.tokenizer.eos_ids)
        check_prompt(tokens, limits)
        samplings = to_samplings(params, tokens, limits)
        text = prompt if isinstance(prompt, str) else None
        async for answer, delta in self._deltas(tuple(tokens), samplings, params):
            yield RequestOutput(
                prompt=text,
                prompt_token_ids=tokens,
                outputs=[answer],
                prompt_logprobs=_prompt_logprobs(delta, self.tokenizer),
                cached_tokens=delta.cached_tokens,
            )

    async def _deltas(
        self, prompt: tuple[int, ...], samplings: Sequence[Sampling], params: SamplingParams
    ) -> AsyncIterator[tuple[CompletionOutput, Delta]]:
        """What each choice gains, as it comes."""
        arrived: asyncio.Queue[tuple[CompletionOutput, Delta] | BaseException | None] = asyncio.Queue(
            2 * len(samplings)
        )

        async def follow(sampling: Sampling) -> None:
            reader = _Reader(self.tokenizer, params, sampling.choice)
            stream = self.client.stream(Request(next(self._numbers), prompt, sampling))
            try:
                async with aclosing(stream):  # type: ignore[type-var]
                    async for delta in stream:
                        await arrived.put((reader.read(delta), delta))
                        if reader.over:
                            break
                await arrived.put(None)
            except Exception as error:
                await arrived.put(error)

        tasks = [asyncio.create_task(follow(sampling)) for sampling in samplings]
        try:
            left = len(tasks)
            while left:
                item = await arrived.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class LLM:
    """A model and its engine, for scripts. Options as for ``AsyncLLM``. Usable from any thread; ``close`` ends it."""

    def __init__(self, model: str, *, embed: bool = True, progress: bool | None = None, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kvern-llm", daemon=True)
        self._thread.start()
        self._progress = progress
        self._open = False
        try:
            self._llm = AsyncLLM(model, embed=embed, progress=progress, **options)
            self._wait(self._llm.start())
            self._open = True
        except BaseException:
            self._end_loop()
            raise

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def tokenizer(self) -> Tokenizer:
        return self._llm.tokenizer

    @property
    def info(self) -> EngineInfo:
        return self._llm.info

    def default_sampling_params(self) -> SamplingParams:
        """What the model's makers suggest, and kvern's defaults where they say nothing."""
        return self._llm.default_sampling_params()

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        """Continue one prompt or many (texts or lists of token ids), as one batch; outputs in order of the prompts.

        Raises InvalidRequest before anything runs when a prompt or its parameters cannot be served.
        """
        return self._wait(self._batch(_prompt_list(prompts), params, add_special=True))

    def chat(
        self, messages: Messages | Sequence[Messages], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        """Answer one conversation or many."""
        several: Sequence[Any] = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = [self._llm.chat_prompt(conversation) for conversation in several]
        return self._wait(self._batch(prompts, params, add_special=False))

    def set_weight_budget(self, budget: int | None) -> None:
        """As ``AsyncLLM.set_weight_budget``."""
        self._wait(self._llm.set_weight_budget(budget))

    def close(self) -> None:
        """Stop the engine and free its memory."""
        if self._open:
            self._open = False
            self._wait(self._llm.close())
            self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _batch(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        *,
        add_special: bool,
    ) -> list[RequestOutput]:
        each: list[SamplingParams]
        if params is None or isinstance(params, SamplingParams):
            each = [params or self._llm.default_sampling_params()] * len(prompts)
        else:
            each = list(params)
        if len(each) != len(prompts):
            raise InvalidRequest(f"{len(prompts)} prompts but {len(each)} sampling parameters", field="params")
        tokens = [self._llm.encode(prompt, add_special=add_special) for prompt in prompts]
        limits = ModelLimits(self.info.vocab_size, self.info.max_context, self.tokenizer.eos_ids)
        for own, wanted in zip(tokens, each, strict=True):
            to_samplings(wanted, own, limits)
        with ProgressBar("prompts", shown=self._progress) as done:
            return await _gather(self._llm, list(zip(prompts, tokens, each, strict=True)), done)


async def _gather(
    llm: AsyncLLM, work: Sequence[tuple[Prompt, list[int], SamplingParams]], done: ProgressBar
) -> list[RequestOutput]:
    """Run prompts together, as many at a time as the engine's queue surely takes."""
    room = asyncio.Semaphore(4 * llm.info.max_running)
    finished = itertools.count(1)

    async def one(prompt: Prompt, tokens: list[int], params: SamplingParams) -> RequestOutput:
        async with room:
            whole = RequestOutput(
                prompt if isinstance(prompt, str) else None,
                tokens,
                [
                    CompletionOutput(index, logprobs=None if params.logprobs is None else [])
                    for index in range(params.n)
                ],
            )
            async for part in llm.generate(tokens, params):
                _merge(whole, part)
            done(next(finished), len(work))
            return whole

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(*item)) for item in work]
    return [task.result() for task in tasks]


class _Reader:
    """One sequence's deltas as text: whole characters, stop strings found, end tokens not shown."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, index: int) -> None:
        self._tokenizer, self._params, self._index = tokenizer, params, index
        self._text = TextStream(
            tokenizer,
            params.stops,
            include_stop=params.include_stop_str_in_output,
            skip_special=params.skip_special_tokens,
            min_tokens=params.min_tokens,
        )
        self.over = False

    def read(self, delta: Delta) -> CompletionOutput:
        """What the delta brought; sets ``over`` when the answer ends, perhaps before the engine knows."""
        params, tokens = self._params, delta.tokens
        ended = delta.stop_token is not None and tokens[-1:] == (delta.stop_token,)
        hidden = int(ended and not params.include_stop_str_in_output)
        got = self._text.feed(tokens[: len(tokens) - hidden])
        text, stopped, used = got.text, got.stopped, got.tokens
        finish: str | None = delta.finish
        if stopped is None:
            used += hidden
            if finish is not None:
                last = self._text.finish()
                text, stopped = text + last.text, last.stopped
        if stopped is not None:
            finish = "stop"
        self.over = finish is not None
        logprobs = delta.logprobs[:used]
        reason = stopped if stopped is not None else delta.stop_token if finish == "stop" else None
        own_stop = isinstance(reason, str) or reason in (params.stop_token_ids or ())
        return CompletionOutput(
            self._index,
            text,
            list(tokens[:used]),
            None if params.logprobs is None else [_logprobs(entry, self._tokenizer) for entry in logprobs],
            None if params.logprobs is None else sum(entry.logprob for entry in logprobs),
            finish,
            reason if own_stop else None,
            delta.error,
        )


def _merge(whole: RequestOutput, part: RequestOutput) -> None:
    whole.prompt_logprobs = whole.prompt_logprobs or part.prompt_logprobs
    whole.cached_tokens = max(whole.cached_tokens, part.cached_tokens)
    for gained in part.outputs:
        output = whole.outputs[gained.index]
        output.text += gained.text
        output.token_ids += gained.token_ids
        if output.logprobs is not None and gained.logprobs is not None:
            output.logprobs += gained.logprobs
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + (gained.cumulative_logprob or 0.0)
        for name in ("finish_reason", "stop_reason", "error"):
            setattr(output, name, getattr(gained, name))


def _logprobs(entry: TokenLogprobs, tokenizer: Tokenizer) -> dict[int, Logprob]:
    """The chosen token first, then the most likely ones."""
    found = {entry.token: Logprob(entry.logprob, entry.rank, _spelled(entry.token, tokenizer))}
    for rank, (token, logprob) in enumerate(entry.top, start=1):
        found.setdefault(token, Logprob(logprob, rank, _spelled(token, tokenizer)))
    return found


def _spelled(token: int, tokenizer: Tokenizer) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "replace")


def _prompt_logprobs(delta: Delta, tokenizer: Tokenizer) -> list[dict[int, Logprob] | None] | None:
    if not delta.prompt_logprobs:
        return None
    return [None if entry is None else _logprobs(entry, tokenizer) for entry in delta.prompt_logprobs]


def _prompt_list(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """One prompt (a text, or a list of token ids) or many, as a list."""
    if isinstance(prompts, str):
        return [prompts]
    several: list[Any] = list(prompts)
    if several and all(isinstance(item, int) for item in several):
        return [several]
    return several
