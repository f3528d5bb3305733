"""Engines over tiny random models, on a back end of choice, in a thread or in a process of their own."""

from __future__ import annotations

import atexit
import functools
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import tiny_models

from kvern.assembly.clients import make_client
from kvern.assembly.engine import EngineOptions
from kvern.core.request import Request, Sampling
from kvern.engine.client import ClientLimits, SocketEngineClient

QUICK = ClientLimits(backoff_s=0.01, restarts=8)
_FOLDER = tempfile.TemporaryDirectory(prefix="kvern-tiny-")
atexit.register(_FOLDER.cleanup)


@functools.cache
def model_file(family: str = "llama", weight_format: str = "Q8_0") -> Path:
    """A GGUF file with a tiny model, written once a test run."""
    return tiny_models.write_gguf(Path(_FOLDER.name) / f"{family}-{weight_format}.gguf", family, weight_format)


@asynccontextmanager
async def tiny_engine(
    *, embed: bool = True, family: str = "llama", **options: object
) -> AsyncIterator[SocketEngineClient]:
    chosen = {"model": str(model_file(family)), "threads": 2, "max_context": 512, "pages": 96, **options}
    client = make_client(EngineOptions.of(**chosen), embed=embed, limits=QUICK)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


def sampled(number: int, prompt: list[int], count: int = 12, **changes: object) -> Request:
    """A request that samples; its seed is a function of its prompt, not of its number."""
    chosen = {"temperature": 0.8, "top_p": 0.95, "seed": sum(prompt) + 1, "max_tokens": count, **changes}
    return Request(number, tuple(prompt), Sampling(**chosen))  # type: ignore[arg-type]


def prompt_of(seed: int, length: int, vocab: int = 256) -> list[int]:
    return [(seed * 131 + i * i * 29 + i) % vocab for i in range(length)]
