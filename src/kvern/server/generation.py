"""One sequence from request to pieces of text, and several of them merged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import cast

import msgspec

from kvern.core.events import Delta
from kvern.core.plan import TokenLogprobs
from kvern.core.request import Request, Sampling
from kvern.server.errors import GenerationFailed
from kvern.server.sampling import Wanted
from kvern.server.service import Service
from kvern.text_stream import StreamedText, TextStream


class Piece(msgspec.Struct, frozen=True):
    """What one choice gained. The last piece has ``finish``."""

    index: int  # of the choice in the answer
    text: str
    tokens: tuple[int, ...]  # that belong to the answer
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    finish: str | None = None  # "stop" | "length"
    stop_reason: str | int | None = None  # the client's stop string or token id
    cached_tokens: int = 0


class _Follower:
    """Turns one sequence's deltas into pieces; measures as it goes."""

    def __init__(self, service: Service, wanted: Wanted, index: int, prompt_tokens: int) -> None:
        params = wanted.params
        self._metrics, self._clock = service.metrics, service.options.monotonic
        self._wanted, self._index, self._prompt_tokens = wanted, index, prompt_tokens
        self._echo_only = wanted.max_tokens == 0
        self._text = TextStream(
            service.tokenizer,
            params.stops,
            include_stop=params.include_stop_str_in_output,
            skip_special=params.skip_special_tokens,
            min_tokens=params.min_tokens,
        )
        self._started = self._last = self._clock()
        self._count = 0
        self.over = False

    def piece(self, delta: Delta) -> Piece:
        """Raises GenerationFailed when the engine gave up."""
        if delta.finish in ("error", "abort"):
            self.over = True
            raise GenerationFailed(delta.error or "the request was ended by the server")
        got, hidden = self._read(delta)
        used = got.tokens + hidden
        finish = "stop" if got.stopped is not None else delta.finish
        if self._echo_only:
            got, used, finish = StreamedText("", 0), 0, "length"
        elif finish is not None and got.stopped is None:
            last = self._text.finish()
            got = StreamedText(got.text + last.text, got.tokens, last.stopped)
            finish = "stop" if last.stopped is not None else finish
        self._measure(used, len(delta.tokens) - used, finish)
        return Piece(
            self._index,
            got.text,
            delta.tokens[:used],
            delta.logprobs[:used],
            delta.prompt_logprobs,
            finish,
            got.stopped if got.stopped is not None else self._stop_id(delta),
            delta.cached_tokens,
        )

    def _read(self, delta: Delta) -> tuple[StreamedText, int]:
        """Text of the tokens; a token that ended the answer counts, but is shown only on request."""
        tokens = delta.tokens
        ended = delta.stop_token is not None and tokens[-1:] == (delta.stop_token,)
        hidden = int(ended and not self._wanted.params.include_stop_str_in_output)
        got = self._text.feed(tokens[: len(tokens) - hidden])
        return got, 0 if got.stopped is not None else hidden

    def _stop_id(self, delta: Delta) -> int | None:
        return delta.stop_token if delta.stop_token in self._wanted.stop_token_ids else None

    def _measure(self, used: int, discarded: int, finish: str | None) -> None:
        now = self._clock()
        if used and not self._count:
            self._metrics.first_token(now - self._started)
        elif used:
            self._metrics.later_tokens((now - self._last) / used, used)
        self._count += used
        self._last = now
        if discarded:
            self._metrics.discarded(discarded)
        if finish is not None:
            self.over = True
            self._metrics.finished(finish, now - self._started, self._prompt_tokens, self._count)


async def follow(
    service: Service, prompt: tuple[int, ...], sampling: Sampling, wanted: Wanted, index: int
) -> AsyncGenerator[Piece, None]:
    """Run one sequence. Leaving early (a stop string, a client gone) aborts it in the engine."""
    follower = _Follower(service, wanted, index, len(prompt))
    request = Request(id=service.next_id(), prompt=prompt, sampling=sampling)
    deltas = cast("AsyncGenerator[Delta, None]", service.client.stream(request))  # the port: it can be closed early
    try:
        async with aclosing(deltas) as stream:
            async for delta in stream:
                piece = follower.piece(delta)
                yield piece
                if piece.finish is not None:
                    return
    finally:
        if not follower.over:
            service.metrics.left()


async def merged(streams: Sequence[AsyncGenerator[Piece, None]]) -> AsyncGenerator[Piece, None]:
    """Pieces of several sequences as they come. A slow reader makes pieces larger, not more."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for piece in only:
                yield piece
        return
    queue: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue(maxsize=2 * len(streams))

    async def pump(stream: AsyncGenerator[Piece, None]) -> None:
        try:
            async with aclosing(stream):
                async for piece in stream:
                    await queue.put(piece)
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    open_streams = len(streams)
    try:
        while open_streams:
            item = await queue.get()
            if item is None:
                open_streams -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
