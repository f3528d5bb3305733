"""Requests that a client has open: what each has received, what its reader has not taken yet, and its crashes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec

from kvern.core.errors import KvernError
from kvern.core.events import Delta
from kvern.core.plan import TokenLogprobs
from kvern.core.request import Request

SUSPECT_CRASHES = 2  # in the plan in so many crashes in a row: the request runs apart from other suspects
QUARANTINE_CRASHES = 3  # one more, and it is given up
TRUSTED_TOKENS = 16  # a suspect that yields so many tokens is no suspect any more


@dataclass(slots=True)
class LiveRequest:
    """One open request. What arrives while its reader is slow is merged, so memory is bounded by its tokens."""

    request: Request
    accepted: list[int] = field(default_factory=list)  # tokens the engine gave, read by the client or not
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    submitted: bool = False  # the engine that runs now knows of it
    over: bool = False  # its last delta has arrived
    error: KvernError | None = None
    resumed: bool = False  # an earlier engine had it: it is not turned away any more
    crashes: int = 0
    trusted_after: int = 0  # length of ``accepted`` at which a suspect is cleared
    _greeted: bool = False
    _tokens: list[int] = field(default_factory=list)
    _logprobs: list[TokenLogprobs] = field(default_factory=list)
    _rest: Delta | None = None  # the other fields of the merged delta

    def to_submit(self) -> Request:
        """The request as an engine must see it to go on where the last one stopped."""
        return msgspec.structs.replace(self.request, accepted=(*self.request.accepted, *self.accepted))

    def add(self, delta: Delta) -> None:
        """Merge a delta from the engine."""
        if self.over:
            return
        self.accepted += delta.tokens
        self._tokens += delta.tokens
        self._logprobs += delta.logprobs
        before = self._rest
        first = delta if before is None else before
        self._rest = msgspec.structs.replace(
            delta,
            tokens=(),
            logprobs=(),
            cached_tokens=0 if self._greeted else first.cached_tokens,
            prompt_logprobs=() if self._greeted else (first.prompt_logprobs or delta.prompt_logprobs),
        )
        self.over = delta.finish is not None
        self.changed.set()

    def fail(self, error: KvernError) -> None:
        """Raise ``error`` in the reader, after what it has not read yet."""
        if not self.over:
            self.error, self.over = error, True
            self.changed.set()

    def give_up(self, message: str) -> None:
        """End the request with finish "error"."""
        self.add(Delta(self.request.id, finish="error", error=message))

    async def next(self) -> Delta:
        """All that arrived since the last call, as one delta. Raises what ``fail`` was given."""
        await self.changed.wait()
        self.changed.clear()
        if self._rest is None:
            assert self.error is not None
            raise self.error
        delta = msgspec.structs.replace(self._rest, tokens=tuple(self._tokens), logprobs=tuple(self._logprobs))
        self._tokens, self._logprobs, self._rest, self._greeted = [], [], None, True
        if self.error is not None:
            self.changed.set()
        return delta

    # -- after a crash --------------------------------------------------------------------------------------------

    @property
    def suspect(self) -> bool:
        """It was in the plan each of the last times the engine died."""
        return self.crashes >= SUSPECT_CRASHES

    def crashed(self, *, in_plan: bool) -> None:
        """The engine died; ``in_plan`` says whether this request was being computed."""
        self.resumed = self.resumed or self.submitted
        self.submitted = False
        if in_plan:
            self.crashes += 1
            self.trusted_after = len(self.accepted) + TRUSTED_TOKENS
            if self.crashes >= QUARANTINE_CRASHES:
                self.give_up(f"the engine died {self.crashes} times while it computed this request")

    def cleared(self) -> bool:
        """A suspect has shown that it does no harm (or is over)."""
        if self.suspect and (self.over or len(self.accepted) >= self.trusted_after):
            self.crashes = 0
            return True
        return False
