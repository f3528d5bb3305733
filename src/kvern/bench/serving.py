"""Open-loop load on any OpenAI-compatible server: requests leave at their time, whatever the server does."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from typing import Any

from kvern.bench.load import Call
from kvern.bench.stream import BenchError, Target, events, fetch
from kvern.bench.summary import Summary, Timing, summarise

# Counters of prompt tokens found in, and looked up in, the prefix cache, as servers of the field name them.
_HITS = re.compile(r"^(?:vllm:|kvern[:_])prefix_cache_hits(?:_total)?(?:\{[^}]*\})?\s+(\S+)", re.MULTILINE)
_QUERIES = re.compile(r"^(?:vllm:|kvern[:_])prefix_cache_queries(?:_total)?(?:\{[^}]*\})?\s+(\S+)", re.MULTILINE)


async def served_model(target: Target) -> str:
    """The first model of ``/v1/models``. Raises BenchError."""
    status, body = await fetch(target, "GET", "/v1/models")
    if status != 200:
        raise BenchError(f"/v1/models answered HTTP {status}")
    try:
        return str(json.loads(body)["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise BenchError("/v1/models lists no model") from error


async def cache_counters(target: Target) -> tuple[int, int] | None:
    """(hits, queries) in prompt tokens since the server's start, or None when it does not say."""
    try:
        status, body = await fetch(target, "GET", "/metrics")
    except BenchError:
        return None
    text = body.decode("utf-8", "replace") if status == 200 else ""
    hits, queries = _HITS.findall(text), _QUERIES.findall(text)
    if not hits or not queries:
        return None
    return int(sum(map(float, hits))), int(sum(map(float, queries)))


def note_usage(timing: Timing, usage: dict[str, Any]) -> None:
    """Take the token counts of a usage block."""
    timing.prompt_tokens = int(usage.get("prompt_tokens") or 0)
    timing.output_tokens = int(usage.get("completion_tokens") or 0)
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens")
    timing.cached_tokens = None if cached is None else int(cached)


def carries_text(event: dict[str, Any]) -> bool:
    for choice in event.get("choices") or []:
        delta = choice.get("delta") or {}
        if choice.get("text") or delta.get("content") or delta.get("reasoning_content"):
            return True
    return False


async def measure(target: Target, model: str, call: Call, started: float) -> Timing:
    """Send one call at its time and time its events. Errors are recorded, not raised."""
    clock = time.perf_counter
    await asyncio.sleep(max(0.0, call.at_s - (clock() - started)))
    timing = Timing(planned_s=call.at_s, sent_s=clock() - started)
    body = {"model": model, "stream": True, "stream_options": {"include_usage": True}, **call.body}
    path = "/v1/chat/completions" if "messages" in call.body else "/v1/completions"
    try:
        async for event in events(target, path, body):
            if carries_text(event):
                timing.token_s.append(clock() - started)
            if event.get("usage"):
                note_usage(timing, event["usage"])
        if timing.output_tokens == 0:
            timing.error = "the stream reported no usage"
    except TimeoutError:  # before OSError, of which it is one
        timing.error = f"no answer within {target.timeout_s:.0f} s"
    except (BenchError, OSError, ValueError) as error:
        timing.error = f"{type(error).__name__}: {error}"[:300]
    timing.done_s = clock() - started
    return timing


async def run(target: Target, calls: Sequence[Call], model: str | None = None) -> Summary:
    """Send all calls at their times and summarise. Raises BenchError when the server cannot be reached at all."""
    name = model if model is not None else await served_model(target)
    before = await cache_counters(target)
    started = time.perf_counter()
    timings = await asyncio.gather(*(measure(target, name, call, started) for call in calls))
    after = await cache_counters(target)
    counted = None
    if before is not None and after is not None:
        counted = (after[0] - before[0], after[1] - before[1])
    return summarise(timings, counted)
