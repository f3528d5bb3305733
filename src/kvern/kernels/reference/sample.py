"""The sampler in NumPy, one row at a time and every candidate sorted: slow, and easy to check by reading."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.kernels.sampling import (
    FAULT_NONE,
    FAULT_NOT_FINITE,
    FAULT_NOTHING_ALLOWED,
    GREEDY_BELOW,
    Ids,
    Numbers,
    SampleParameters,
)

_MASK = 0xFFFF_FFFF


def philox(seed: int, position: int, choice: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 (Salmon et al., SC 2011) of counter (position, choice, 0, 0) under key ``seed``."""
    counter = [position, choice, 0, 0]
    key = [seed & _MASK, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(b >> 32) ^ counter[1] ^ key[0], b & _MASK, (a >> 32) ^ counter[3] ^ key[1], a & _MASK]
        key = [(key[0] + 0x9E3779B9) & _MASK, (key[1] + 0xBB67AE85) & _MASK]
    return counter[0], counter[1], counter[2], counter[3]


def uniform(seed: int, position: int, choice: int) -> float:
    """53 random bits in [0, 1)."""
    high, low, _, _ = philox(seed, position, choice)
    return float(((high << 32 | low) >> 11) * 2.0**-53)


def ids_of(rows: SampleParameters, name: str, i: int) -> Ids:
    """The ids of row ``i`` in one of the flat lists."""
    ids: Ids = getattr(rows, f"{name}_ids")
    begin: Ids = getattr(rows, f"{name}_begin")
    return ids[begin[i] : begin[i + 1]]


def adjust(logits: Numbers, rows: SampleParameters, i: int) -> Numbers:
    """Logits of row ``i`` after allowed and banned ids, bias and penalties."""
    x = logits.copy()
    allowed, history = ids_of(rows, "allowed", i), ids_of(rows, "history", i)
    if allowed.size:
        x = np.full_like(logits, -np.inf)
        x[allowed] = logits[allowed]
    x[ids_of(rows, "banned", i)] = -np.inf
    np.add.at(x, ids_of(rows, "bias", i), rows.bias_values[rows.bias_begin[i] : rows.bias_begin[i + 1]])
    seen, repetition = np.unique(history), rows.repetition_penalty[i]
    x[seen] = np.where(x[seen] > 0, x[seen] / repetition, x[seen] * repetition)
    generated, uses = np.unique(history[rows.prompt_tokens[i] :], return_counts=True)
    x[generated] -= rows.frequency_penalty[i] * uses.astype(np.float32)
    x[generated] -= rows.presence_penalty[i]
    return x


def keep(x: Numbers, rows: SampleParameters, i: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Ids that may be drawn, best first, and their weights, after min-p, top-k and top-p."""
    order = np.lexsort((np.arange(x.size), -x))
    order = order[x[order] > -np.inf]
    weights = np.exp(x[order] - x[order[0]]).astype(np.float64)
    passing = weights >= rows.min_p[i]
    order, weights = order[passing], weights[passing]
    if rows.top_k[i] > 0:
        order, weights = order[: rows.top_k[i]], weights[: rows.top_k[i]]
    if rows.top_p[i] < 1:
        before = np.cumsum(weights) - weights
        count = max(1, int((before < float(rows.top_p[i]) * weights.sum()).sum()))
        order, weights = order[:count], weights[:count]
    return order, weights


def choose_row(logits: Numbers, rows: SampleParameters, i: int) -> tuple[int, int]:
    """The token of row ``i`` and its fault; -1 when its logits are not finite or nothing is allowed."""
    if np.isnan(logits).any() or logits.max() in (-np.inf, np.inf):
        return -1, FAULT_NOT_FINITE
    x = adjust(logits, rows, i)
    if not x.max() > -np.inf:
        return -1, FAULT_NOTHING_ALLOWED
    if rows.temperature[i] < GREEDY_BELOW:
        return int(x.argmax()), FAULT_NONE
    ids, weights = keep(x / rows.temperature[i], rows, i)
    sums = np.cumsum(weights)
    target = uniform(int(rows.seed[i]), int(rows.position[i]), int(rows.choice[i])) * sums[-1]
    found = min(int(np.searchsorted(sums, target, side="right")), ids.size - 1)
    return int(ids[found]), FAULT_NONE


class ReferenceSampler:
    """Implements ``kvern.runtime.sampler.SampleKernel``."""

    def choose_tokens(self, logits: Numbers, batch: SampleParameters) -> tuple[Ids, NDArray[np.uint8]]:
        """Tokens [E] and faults [E] of logits [E, V]."""
        found = [choose_row(row, batch, i) for i, row in enumerate(logits)]
        return np.array([token for token, _ in found], np.int32), np.array([fault for _, fault in found], np.uint8)

    def score_tokens(self, logits: Numbers, tokens: Ids, top: int) -> tuple[Numbers, Ids, Ids, Numbers]:
        """Log-probability [E] and rank [E] of ``tokens``, and the ``top`` most likely ids and theirs [E, top]."""
        values = logits.astype(np.float64)
        values -= values.max(axis=1, keepdims=True)
        values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
        every = np.broadcast_to(np.arange(logits.shape[1]), logits.shape)
        order = np.lexsort((every, -logits), axis=1).astype(np.int32)  # equal logits rank by id
        own = np.take_along_axis(values, tokens[:, None].astype(np.intp), axis=1)[:, 0]
        ranks = (order == tokens[:, None]).argmax(axis=1) + 1
        best = np.ascontiguousarray(order[:, :top])
        return (
            own.astype(np.float32),
            ranks.astype(np.int32),
            best,
            np.take_along_axis(values, best, 1).astype(np.float32),
        )
