"""What every engine is asked, kvern and its peers alike: random token ids, greedy, end-of-text ignored.

Only the standard library: this file runs in the peers' environments too. A worker makes a `Generate`, this file times
it and prints one JSON object a line: {"case", "unit", "value"}.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterable

Prompts = list[list[int]]
# All prompts at once, each continued by exactly so many tokens; returns when the last one is out.
Generate = Callable[[Prompts, int], None]

STARTED = "BENCHMARK_STARTED"  # environment: time.time() when the worker's process was started
FIRST_ID, LAST_ID = 1000, 45000  # ordinary tokens of every vocabulary used here
PREFILLS = (512, 2048)
CONTEXTS = (128, 1024)
BATCHES = (16, 32, 64)
BATCH_PROMPT, BATCH_OUTPUT, DECODED = 128, 128, 128
SHARED_REQUESTS, SHARED_PREFIX, SHARED_OWN, SHARED_OUTPUT = 32, 1024, 32, 32


class Workload:
    """Prompts never seen before, so that no prefix cache helps where none is meant to."""

    def __init__(self, generate: Generate, seed: int) -> None:
        self._generate = generate
        self._random = random.Random(seed)

    def _prompt(self, tokens: int) -> list[int]:
        return [self._random.randrange(FIRST_ID, LAST_ID) for _ in range(tokens)]

    def _seconds(self, prompts: Prompts, output: int) -> float:
        start = time.perf_counter()
        self._generate(prompts, output)
        return time.perf_counter() - start

    def first(self) -> None:
        self._generate([self._prompt(16)], 1)

    def warm_up(self) -> None:
        self._generate([self._prompt(64), self._prompt(64)], 8)
        self._generate([self._prompt(max(PREFILLS))], 2)

    def prefill(self, tokens: int) -> float:
        """Prompt tokens per second, up to and with the first token."""
        return tokens / self._seconds([self._prompt(tokens)], 1)

    def decode(self, context: int) -> float:
        """Tokens per second of one request after its first token: the difference of a long and a short answer."""
        short = self._seconds([self._prompt(context)], 1)
        return DECODED / (self._seconds([self._prompt(context)], DECODED + 1) - short)

    def batch(self, requests: int) -> float:
        """Output tokens per second of the whole wall, prefill included."""
        prompts = [self._prompt(BATCH_PROMPT) for _ in range(requests)]
        return requests * BATCH_OUTPUT / self._seconds(prompts, BATCH_OUTPUT)

    def shared_prefix(self) -> float:
        """Wall seconds of 32 requests that begin with the same 1024 tokens."""
        prefix = self._prompt(SHARED_PREFIX)
        prompts = [prefix + self._prompt(SHARED_OWN) for _ in range(SHARED_REQUESTS)]
        return self._seconds(prompts, SHARED_OUTPUT)

    def cases(self) -> Iterable[tuple[str, str, Callable[[], float]]]:
        """Name, unit and measurement of each case, in order."""
        for tokens in PREFILLS:
            yield f"prefill {tokens}", "tokens/s", lambda tokens=tokens: self.prefill(tokens)
        for context in CONTEXTS:
            yield f"decode, batch 1, context {context}", "tokens/s", lambda context=context: self.decode(context)
        for requests in BATCHES:
            name = f"{requests} requests of {BATCH_PROMPT} + {BATCH_OUTPUT}"
            yield name, "output tokens/s", lambda requests=requests: self.batch(requests)
        yield "32 requests, 1024 tokens shared", "s", self.shared_prefix


def peak_mib() -> float:
    """Peak resident memory of this process and of its largest child."""
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (own + children) / 1024


def report(case: str, unit: str, value: float) -> None:
    sys.stdout.write(json.dumps({"case": case, "unit": unit, "value": value}) + "\n")
    sys.stdout.flush()


def run(generate: Generate, repeats: int, seed: int) -> None:
    """Time to the first token, then, warmed up, every case ``repeats`` times."""
    workload = Workload(generate, seed)
    workload.first()
    report("start to first token", "s", time.time() - float(os.environ[STARTED]))
    workload.warm_up()
    for _ in range(repeats):
        for case, unit, measure in workload.cases():
            report(case, unit, measure())
    report("peak memory", "MiB", peak_mib())
