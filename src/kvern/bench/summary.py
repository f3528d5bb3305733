"""Numbers about a set of measured requests, and the table that shows them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Timing:
    """One request as the client saw it; times in seconds from the start of the run."""

    planned_s: float
    sent_s: float
    token_s: list[float] = field(default_factory=list)  # arrival of each event that carried text
    done_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None  # None: the server did not say
    error: str | None = None


@dataclass(frozen=True)
class Spread:
    """Milliseconds over requests (``itl``: over gaps). Percentiles are nearest-rank: always a measured value."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


def spread(seconds: Sequence[float]) -> Spread | None:
    """None of nothing."""
    if not seconds:
        return None
    ordered = sorted(1000 * value for value in seconds)

    def rank(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return Spread(sum(ordered) / len(ordered), rank(0.5), rank(0.9), rank(0.99), ordered[-1])


@dataclass(frozen=True)
class Summary:
    """A run. Throughput is None where it would be unsafe to quote: see ``withheld``."""

    requests: int
    failed: int
    seconds: float  # first arrival to last token
    prompt_tokens: int
    output_tokens: int
    hit_rate: float | None  # cached prompt tokens / prompt tokens
    hit_rate_source: str | None  # "usage" | "metrics"
    output_per_s: float | None
    total_per_s: float | None
    requests_per_s: float | None
    withheld: str | None  # why throughput is not given
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    itl_ms: Spread | None
    e2e_ms: Spread | None
    client_lag_ms: Spread | None  # sent minus planned: a busy client is not an open loop
    errors: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


WITHHELD = (
    "the server reports no cached tokens (neither usage.prompt_tokens_details.cached_tokens nor prefix-cache "
    "counters under /metrics), so a throughput could be the prefix cache's and not the engine's"
)


def summarise(timings: Sequence[Timing], counted: tuple[int, int] | None = None) -> Summary:
    """``counted`` is (hits, queries) in prompt tokens from the server's own counters, used when usage has none."""
    good = [timing for timing in timings if timing.error is None]
    seconds = max((t.done_s for t in good), default=0.0) - min((t.sent_s for t in good), default=0.0)
    prompt, output = sum(t.prompt_tokens for t in good), sum(t.output_tokens for t in good)
    rate, source = _hit_rate(good, prompt, counted)
    known = rate is not None and seconds > 0
    decoded = [t for t in good if t.output_tokens > 1 and t.token_s]
    return Summary(
        requests=len(timings),
        failed=len(timings) - len(good),
        seconds=seconds,
        prompt_tokens=prompt,
        output_tokens=output,
        hit_rate=rate,
        hit_rate_source=source,
        output_per_s=output / seconds if known else None,
        total_per_s=(prompt + output) / seconds if known else None,
        requests_per_s=len(good) / seconds if known else None,
        withheld=None if known else ("no request succeeded" if not good else WITHHELD),
        ttft_ms=spread([t.token_s[0] - t.sent_s for t in good if t.token_s]),
        tpot_ms=spread([(t.token_s[-1] - t.token_s[0]) / (t.output_tokens - 1) for t in decoded]),
        itl_ms=spread([b - a for t in good for a, b in itertools.pairwise(t.token_s)]),
        e2e_ms=spread([t.done_s - t.sent_s for t in good]),
        client_lag_ms=spread([t.sent_s - t.planned_s for t in timings]),
        errors=tuple(sorted({t.error for t in timings if t.error is not None}))[:5],
    )


def _hit_rate(
    good: Sequence[Timing], prompt: int, counted: tuple[int, int] | None
) -> tuple[float | None, str | None]:
    said = [timing.cached_tokens for timing in good]
    if good and prompt and all(cached is not None for cached in said):
        return sum(cached or 0 for cached in said) / prompt, "usage"
    if good and counted is not None and counted[1] > 0:
        return counted[0] / counted[1], "metrics"
    return None, None


def table(summary: Summary) -> str:
    """Plain text for a terminal."""
    lines = [f"requests          {summary.requests} ({summary.failed} failed) in {summary.seconds:.2f} s"]
    lines.append(f"tokens            {summary.prompt_tokens} in, {summary.output_tokens} out")
    if summary.hit_rate is not None:
        lines.append(
            f"prefix hit rate   {100 * summary.hit_rate:.1f} % of prompt tokens (from {summary.hit_rate_source})"
        )
    if summary.withheld is None:
        lines.append(f"output            {summary.output_per_s:.1f} tokens/s")
        lines.append(f"input + output    {summary.total_per_s:.1f} tokens/s")
        lines.append(f"requests          {summary.requests_per_s:.2f} /s")
    else:
        lines.append(f"throughput        withheld: {summary.withheld}")
    lines.append(f"{'ms':<10}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}{'max':>10}")
    rows = {"TTFT": summary.ttft_ms, "TPOT": summary.tpot_ms, "ITL": summary.itl_ms, "e2e": summary.e2e_ms}
    for name, part in (rows | {"client lag": summary.client_lag_ms}).items():
        if part is not None:
            values = (part.mean, part.p50, part.p90, part.p99, part.max)
            lines.append(f"{name:<10}" + "".join(f"{value:>10.1f}" for value in values))
    lines.extend(f"error: {error}" for error in summary.errors)
    return "\n".join(lines)
