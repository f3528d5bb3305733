"""The edges of the control core: what a driver, an executor and a server must offer each other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from kvern.core.events import Delta, LaneFailed, Stepped
from kvern.core.plan import Plan
from kvern.core.request import Request


class Clock(Protocol):
    def now(self) -> float:
        """Seconds, monotonic, from an arbitrary origin."""


class Executor(Protocol):
    """Runs plans. One thread per lane; plans of a lane run in order of submission."""

    def submit(self, plan: Plan) -> None:
        """Queue a plan on its lane; returns at once."""

    def interrupt(self, lane: int, step: int) -> None:
        """Ask a running interruptible plan to stop at its next unit boundary; stale ids are ignored."""

    def completions(self) -> list[Stepped | LaneFailed]:
        """Take what finished since the last call, in order of completion; never blocks."""

    def close(self) -> None:
        """Finish what runs, then free threads and memory."""


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot for metrics and health. Counts since start unless said."""

    running: int = 0  # now
    waiting: int = 0  # now
    pages_used: int = 0  # now, pages held by live sequences
    pages_cached: int = 0  # now, pages held by the prefix cache alone
    pages_total: int = 0
    preemptions: int = 0
    prefix_queries_tokens: int = 0
    prefix_hits_tokens: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    last_step_age_s: float = 0.0  # seconds since a step or an idle heartbeat finished in the engine loop
    resident_bytes: int = 0


class EngineInfo(msgspec.Struct, frozen=True, array_like=True):
    """What a front end must know of the engine it speaks to."""

    model: str
    vocab_size: int
    max_context: int  # tokens, prompt and output together
    page_tokens: int
    pages_total: int
    max_running: int
    weight_format: str
    kv_format: str
    isa: str
    threads: int
    deterministic: bool
    resident_bytes: int


class EngineClient(Protocol):
    """The server's only view of an engine: in process, in another process, or simulated."""

    @property
    def info(self) -> EngineInfo: ...

    async def start(self) -> None: ...

    def stream(self, request: Request) -> AsyncIterator[Delta]:
        """Submit and yield deltas; closing the iterator early aborts the request.

        Raises InvalidRequest (refused), Overloaded, EngineDead.
        """

    async def stats(self) -> EngineStats: ...

    async def set_weight_budget(self, budget: int | None) -> None:
        """Bytes that all weights may take from the next step on; None: all. Raises ConfigError, EngineDead."""

    def alive(self) -> bool:
        """The engine loop has finished a step or a heartbeat lately; never touches the request queue."""

    async def close(self) -> None: ...
