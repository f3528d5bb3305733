"""From logits to tokens: sampling parameters as arrays, one row per slot, and the call into a back end's sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kvern.core.plan import TokenLogprobs
from kvern.core.request import Sampling
from kvern.kernels.sampling import FAULT_NONE, FAULT_NOT_FINITE, GREEDY_BELOW, SampleParameters, likeliest

OFF = -1
_NO_IDS = np.zeros(0, np.int32)
_NO_VALUES = np.zeros(0, np.float32)

ROW = np.dtype([
    ("temperature", np.float32), ("top_p", np.float32), ("min_p", np.float32), ("top_k", np.int32),
    ("repetition_penalty", np.float32), ("presence_penalty", np.float32), ("frequency_penalty", np.float32),
    ("seed", np.uint64), ("choice", np.uint32),
    ("max_tokens", np.int32), ("min_tokens", np.int32),
    ("logprobs", np.int32), ("prompt_logprobs", np.int32),  # OFF, or how many of the most likely
    ("plain", np.bool_),  # greedy over the model's own logits
    ("likeliest", np.bool_),  # and nothing else is wanted of them
])  # fmt: skip


class SamplingTable:
    """Parameters of all slots. What only some requests have (bias, allowed ids) is kept by slot beside them."""

    def __init__(self, slots: int) -> None:
        self.rows = np.zeros(slots, ROW)
        self.stops = np.full((slots, 4), OFF, np.int32)  # padded with -1, which is no token
        self.bias: dict[int, tuple[NDArray[np.int32], NDArray[np.float32]]] = {}
        self.allowed: dict[int, NDArray[np.int32]] = {}
        self._prompt_wanted: set[int] = set()

    def set(self, slot: int, sampling: Sampling) -> None:
        """Take over the parameters of a sequence that starts."""
        self.clear(slot)
        penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        masks = sampling.logit_bias or sampling.allowed_token_ids or sampling.min_tokens
        plain = sampling.temperature < GREEDY_BELOW and penalties == (1.0, 0.0, 0.0) and not masks
        self.rows[slot] = (
            sampling.temperature,
            sampling.top_p,
            sampling.min_p,
            sampling.top_k,
            *penalties,
            sampling.seed & 0xFFFF_FFFF_FFFF_FFFF,
            sampling.choice,
            sampling.max_tokens,
            sampling.min_tokens,
            OFF if sampling.logprobs is None else sampling.logprobs,
            OFF if sampling.prompt_logprobs is None else sampling.prompt_logprobs,
            plain,
            plain and sampling.logprobs is None,
        )
        self._set_stops(slot, sampling.stop_token_ids)
        if sampling.logit_bias:
            ids, values = zip(*sampling.logit_bias, strict=True)
            self.bias[slot] = np.array(ids, np.int32), np.array(values, np.float32)
        if sampling.allowed_token_ids:
            self.allowed[slot] = np.array(sampling.allowed_token_ids, np.int32)
        if sampling.prompt_logprobs is not None:
            self._prompt_wanted.add(slot)

    def clear(self, slot: int) -> None:
        """A sequence left its slot."""
        self.bias.pop(slot, None)
        self.allowed.pop(slot, None)
        self._prompt_wanted.discard(slot)

    def any_prompt_logprobs(self) -> bool:
        return bool(self._prompt_wanted)

    def banned(self, slot: int, generated: int) -> NDArray[np.int32]:
        """Ids that may not come yet: the stop ids, until ``min_tokens`` tokens are there."""
        if generated >= self.rows["min_tokens"][slot]:
            return _NO_IDS
        stops = self.stops[slot]
        return np.ascontiguousarray(stops[stops >= 0])

    def grow(self, slots: int) -> None:
        """Room for so many slots; those there keep what they have."""
        more = slots - len(self.rows)
        self.rows = np.concatenate([self.rows, np.zeros(more, ROW)])
        self.stops = np.concatenate([self.stops, np.full((more, self.stops.shape[1]), OFF, np.int32)])

    def _set_stops(self, slot: int, stops: tuple[int, ...]) -> None:
        missing = len(stops) - self.stops.shape[1]
        if missing > 0:
            self.stops = np.pad(self.stops, ((0, 0), (0, missing)), constant_values=OFF)
        self.stops[slot] = OFF
        self.stops[slot, : len(stops)] = stops


class TokenState(Protocol):
    """What sampling reads of the running batch."""

    tokens: NDArray[np.int32]  # [slots, context + 1]
    known: NDArray[np.int32]  # [slots]
    prompt: NDArray[np.int32]  # [slots]
    sampling: SamplingTable


@dataclass(slots=True)
class SampleRows:
    """Parameters of E rows, gathered for a back end; see ``kvern.kernels.sampling.SampleParameters``."""

    temperature: NDArray[np.float32]
    top_p: NDArray[np.float32]
    min_p: NDArray[np.float32]
    top_k: NDArray[np.int32]
    repetition_penalty: NDArray[np.float32]
    presence_penalty: NDArray[np.float32]
    frequency_penalty: NDArray[np.float32]
    seed: NDArray[np.uint64]
    choice: NDArray[np.uint32]
    position: NDArray[np.int32]
    prompt_tokens: NDArray[np.int32]
    history_ids: NDArray[np.int32]
    history_begin: NDArray[np.int32]
    bias_ids: NDArray[np.int32]
    bias_begin: NDArray[np.int32]
    bias_values: NDArray[np.float32]
    allowed_ids: NDArray[np.int32]
    allowed_begin: NDArray[np.int32]
    banned_ids: NDArray[np.int32]
    banned_begin: NDArray[np.int32]


_COLUMNS = (
    "temperature", "top_p", "min_p", "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "seed", "choice",
)  # fmt: skip


def gather(slots: NDArray[np.int64], state: TokenState) -> SampleRows:
    """The parameters of the sequences in ``slots``. Only rows with penalties bring their tokens along."""
    table = state.sampling
    rows = table.rows[slots]
    each, position, prompt = slots.tolist(), state.known[slots], state.prompt[slots]
    penalised = (rows["repetition_penalty"] != 1) | (rows["presence_penalty"] != 0) | (rows["frequency_penalty"] != 0)
    histories = [
        state.tokens[slot, :count] if wanted else _NO_IDS
        for slot, count, wanted in zip(each, position.tolist(), penalised.tolist(), strict=True)
    ]
    generated = (position - prompt).tolist()
    biases = [table.bias.get(slot, (_NO_IDS, _NO_VALUES)) for slot in each]
    lists = {
        "history": histories,
        "bias": [ids for ids, _ in biases],
        "allowed": [table.allowed.get(slot, _NO_IDS) for slot in each],
        "banned": [table.banned(slot, count) for slot, count in zip(each, generated, strict=True)],
    }
    flat: dict[str, Any] = {}
    for name, ids in lists.items():
        flat[f"{name}_ids"], flat[f"{name}_begin"] = _flat(ids)
    columns: dict[str, Any] = {name: np.ascontiguousarray(rows[name]) for name in _COLUMNS}
    return SampleRows(
        **columns,
        **flat,
        position=position,
        prompt_tokens=prompt,
        bias_values=np.concatenate([values for _, values in biases]),
    )


def _flat(lists: list[NDArray[np.int32]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """All ids in one array, and where each list begins."""
    begin = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(ids) for ids in lists], out=begin[1:])
    return np.concatenate(lists), begin


class SampleKernel(Protocol):
    """A back end's sampler."""

    def choose_tokens(
        self, logits: NDArray[np.float32], batch: SampleParameters
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """A token for each row of ``logits`` [E, V], -1 where there is none, and why (``FAULT_...``)."""

    def score_tokens(
        self, logits: NDArray[np.float32], tokens: NDArray[np.int32], top: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
        """Log-probability [E] and rank [E] of ``tokens``, and the ``top`` most likely ids and theirs [E, top]."""


class Sampler:
    """Chooses tokens for the emitting rows of a step."""

    def __init__(self, kernel: SampleKernel) -> None:
        self._kernel = kernel

    def choose(
        self, logits: NDArray[np.float32], slots: NDArray[np.int64], state: TokenState
    ) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """A token for each row of ``logits`` [E, V], which belong to ``slots``; -1 where there is none, and why."""
        plain = state.sampling.rows["plain"][slots]
        tokens, faults = np.empty(len(slots), np.int32), np.empty(len(slots), np.uint8)
        if plain.any():
            tokens[plain] = likeliest(logits if plain.all() else logits[plain])
            faults[plain] = np.where(tokens[plain] < 0, FAULT_NOT_FINITE, FAULT_NONE)
        if not plain.all():
            drawn = ~plain
            rows = logits[drawn] if plain.any() else logits
            tokens[drawn], faults[drawn] = self._kernel.choose_tokens(rows, gather(slots[drawn], state))
        return tokens, faults

    def score(self, logits: NDArray[np.float32], tokens: NDArray[np.int32], top: int) -> list[TokenLogprobs]:
        """Log-probabilities of ``tokens`` [E] and of the ``top`` most likely ones under each row of logits [E, V]."""
        top = min(top, logits.shape[1])
        logprobs, ranks, ids, values = self._kernel.score_tokens(np.ascontiguousarray(logits), tokens, top)
        rows = zip(tokens.tolist(), logprobs.tolist(), ranks.tolist(), ids.tolist(), values.tolist(), strict=True)
        return [
            TokenLogprobs(token, logprob, rank, tuple(zip(best, theirs, strict=True)))
            for token, logprob, rank, best, theirs in rows
        ]
