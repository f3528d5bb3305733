"""How far one device's model is from another's on the same text, and how fast a device is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvern.runtime.device import PAGE_TOKENS, Device, StepBatch

CHUNK = 64  # tokens of a step whose logits are held at once
_ROWS = 16  # of logits turned to float64 at once
Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Quality:
    """Over ``positions`` scored tokens: mean KL(base || model) in nats, the share of positions where both rank the
    same token first, and both perplexities."""

    positions: int
    divergence: float
    agreement: float
    perplexity: float
    base_perplexity: float

    @property
    def perplexity_ratio(self) -> float:
        return self.perplexity / self.base_perplexity


def pages_for(tokens: int) -> int:
    """Pages of one sequence of ``tokens``."""
    return -(-tokens // PAGE_TOKENS)


def run(device: Device, tokens: NDArray[np.int32], begin: int, wanted: NDArray[np.int32]) -> Logits:
    """Tokens from position ``begin`` on of the one sequence on pages 0, 1, ...; logits at rows ``wanted`` of them."""
    rows = tokens.size
    batch = StepBatch(
        tokens=np.ascontiguousarray(tokens, np.int32),
        positions=np.arange(begin, begin + rows, dtype=np.int32),
        row_begin=np.array([0, rows], np.int32),
        unit_begin=np.zeros(1, np.int32),
        unit_end=np.array([device.units], np.int32),
        block_table=np.arange(device.pages, dtype=np.int32)[None],
        hidden=np.zeros((rows, device.hidden_size), np.float32),
        logit_rows=np.ascontiguousarray(wanted, np.int32),
        stop=np.zeros(1, np.uint8),
    )
    return device.step(batch).logits


def logits_of(device: Device, window: NDArray[np.int32], scored_from: int) -> Iterator[tuple[int, Logits]]:
    """(position, logits [rows, V] from that position on) over the scored part of one text, a chunk at a time."""
    if scored_from:
        run(device, window[:scored_from], 0, np.empty(0, np.int32))
    for begin in range(scored_from, window.size, CHUNK):
        part = window[begin : begin + CHUNK]
        yield begin, run(device, part, begin, np.arange(part.size, dtype=np.int32))


def compare(
    base: Device,
    model: Device,
    windows: NDArray[np.int32],
    scored_from: int,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Quality:
    """Teacher-forced over ``windows`` int32 [texts, length], positions ``scored_from`` to the last but one."""
    sums, positions = np.zeros(4), 0
    for index, window in enumerate(windows):
        pairs = zip(logits_of(base, window, scored_from), logits_of(model, window, scored_from), strict=True)
        for (begin, ours), (_, theirs) in pairs:
            count = min(ours.shape[0], window.size - 1 - begin)
            targets = window[begin + 1 : begin + 1 + count]
            sums += divergences(ours[:count], theirs[:count], targets)
            positions += count
            tick(index * window.size + begin + count, windows.size)
    means = sums / positions
    return Quality(positions, float(means[0]), float(means[1]), float(np.exp(means[3])), float(np.exp(means[2])))


def divergences(base: Logits, model: Logits, targets: NDArray[np.int32]) -> NDArray[np.float64]:
    """Sums over rows: KL(base || model), same first token, and the negative log-likelihoods of base and model."""
    sums = np.zeros(4)
    for begin in range(0, targets.size, _ROWS):
        rows = slice(begin, begin + _ROWS)
        p, q, chosen = log_softmax(base[rows]), log_softmax(model[rows]), targets[rows]
        at = np.arange(chosen.size)
        sums += (
            (np.exp(p) * (p - q)).sum(),
            (p.argmax(axis=-1) == q.argmax(axis=-1)).sum(),
            -p[at, chosen].sum(),
            -q[at, chosen].sum(),
        )
    return sums


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Natural logarithms of probabilities, float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second, the best of several runs."""

    prefill: float
    decode: float


def speed(device: Device, tokens: NDArray[np.int32], decoded: int = 16, repeats: int = 3) -> Speed:
    """Prefill of ``tokens`` (one text) in one step, then decode of ``decoded`` tokens after it."""
    last = np.array([tokens.size - 1], np.int32)
    prefill = min(_seconds(lambda: run(device, tokens, 0, last)) for _ in range(repeats))

    def decode() -> None:
        for step in range(decoded):
            run(device, tokens[-1:], tokens.size + step, np.zeros(1, np.int32))

    return Speed(tokens.size / prefill, decoded / min(_seconds(decode) for _ in range(repeats)))


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
