"""From logits to tokens: sampling parameters as arrays, one row per slot, and the call into a back end's sampler."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kvern.core.plan import TokenLogprobs
from kvern.core.request import Sampling
from kvern.kernels.sampling import GREEDY_BELOW, SampleParameters

OFF = -1
_NO_IDS = np.zeros(0, np.int32)
_NO_VALUES = np.zeros(0, np.float32)


class SamplingTable:
    """Parameters of all slots. What only some requests have (bias, allowed ids) is kept by slot beside them."""

    def __init__(self, slots: int) -> None:
        floats = ("temperature", "top_p", "min_p", "repetition", "presence", "frequency")
        self.temperature, self.top_p, self.min_p, self.repetition, self.presence, self.frequency = (
            np.zeros(slots, np.float32) for _ in floats
        )
        self.top_k, self.max_tokens, self.min_tokens = (np.zeros(slots, np.int32) for _ in range(3))
        self.seed, self.choice = np.zeros(slots, np.uint64), np.zeros(slots, np.uint32)
        self.logprobs, self.prompt_logprobs = np.full(slots, OFF, np.int32), np.full(slots, OFF, np.int32)
        self.plain = np.zeros(slots, np.bool_)  # greedy over the model's own logits
        self.stops = np.full((slots, 4), OFF, np.int32)  # padded with -1, which is no token
        self.bias: dict[int, tuple[NDArray[np.int32], NDArray[np.float32]]] = {}
        self.allowed: dict[int, NDArray[np.int32]] = {}
        self._prompt_wanted: set[int] = set()

    def set(self, slot: int, sampling: Sampling) -> None:
        """Take over the parameters of a sequence that starts."""
        self.clear(slot)
        self.temperature[slot], self.top_p[slot] = sampling.temperature, sampling.top_p
        self.min_p[slot], self.top_k[slot] = sampling.min_p, sampling.top_k
        self.repetition[slot], self.presence[slot] = sampling.repetition_penalty, sampling.presence_penalty
        self.frequency[slot] = sampling.frequency_penalty
        self.max_tokens[slot], self.min_tokens[slot] = sampling.max_tokens, sampling.min_tokens
        self.seed[slot], self.choice[slot] = sampling.seed & 0xFFFF_FFFF_FFFF_FFFF, sampling.choice
        self.logprobs[slot] = OFF if sampling.logprobs is None else sampling.logprobs
        self.prompt_logprobs[slot] = OFF if sampling.prompt_logprobs is None else sampling.prompt_logprobs
        self._set_stops(slot, sampling.stop_token_ids)
        if sampling.logit_bias:
            ids, values = zip(*sampling.logit_bias, strict=True)
            self.bias[slot] = np.array(ids, np.int32), np.array(values, np.float32)
        if sampling.allowed_token_ids:
            self.allowed[slot] = np.array(sampling.allowed_token_ids, np.int32)
        if sampling.prompt_logprobs is not None:
            self._prompt_wanted.add(slot)
        penalties = (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
        self.plain[slot] = (
            sampling.temperature < GREEDY_BELOW
            and penalties == (1.0, 0.0, 0.0)
            and not (sampling.logit_bias or sampling.allowed_token_ids or sampling.min_tokens)
        )

    def clear(self, slot: int) -> None:
        """A sequence left its slot."""
        self.bias.pop(slot, None)
        self.allowed.pop(slot, None)
        self._prompt_wanted.discard(slot)

    def any_prompt_logprobs(self) -> bool:
        return bool(self._prompt_wanted)

    def banned(self, slot: int, generated: int) -> NDArray[np.int32]:
        """Ids that may not come yet: the stop ids, until ``min_tokens`` tokens are there."""
        if generated >= self.min_tokens[slot]:
            return _NO_IDS
        stops = self.stops[slot]
        return np.ascontiguousarray(stops[stops >= 0])

    def grow(self, slots: int) -> None:
        for name, before in list(vars(self).items()):
            if isinstance(before, np.ndarray):
                after = np.zeros((slots, *before.shape[1:]), before.dtype)
                after[: len(before)] = before
                setattr(self, name, after)

    def _set_stops(self, slot: int, stops: tuple[int, ...]) -> None:
        if len(stops) > self.stops.shape[1]:
            wider = np.full((len(self.stops), len(stops)), OFF, np.int32)
            wider[:, : self.stops.shape[1]] = self.stops
            self.stops = wider
        self.stops[slot] = OFF
        self.stops[slot, : len(stops)] = stops


class SampleRows:
    """Parameters of E rows, gathered for a back end: ``kvern.kernels.sampling.SampleParameters``."""

    def __init__(self, table: SamplingTable, slots: NDArray[np.int64], state: TokenState) -> None:
        self.temperature, self.top_p, self.min_p = table.temperature[slots], table.top_p[slots], table.min_p[slots]
        self.repetition_penalty, self.presence_penalty = table.repetition[slots], table.presence[slots]
        self.frequency_penalty, self.top_k = table.frequency[slots], table.top_k[slots]
        self.seed, self.choice = table.seed[slots], table.choice[slots]
        self.prompt_tokens, self.position = state.prompt[slots], state.known[slots]
        each, known = slots.tolist(), self.position.tolist()
        penalised = (self.repetition_penalty != 1) | (self.presence_penalty != 0) | (self.frequency_penalty != 0)
        histories = [
            state.tokens[slot, :count] if wanted else _NO_IDS
            for slot, count, wanted in zip(each, known, penalised.tolist(), strict=True)
        ]
        self.history_ids, self.history_begin = _flat(histories)
        generated = (self.position - self.prompt_tokens).tolist()
        banned = [table.banned(slot, count) for slot, count in zip(each, generated, strict=True)]
        self.banned_ids, self.banned_begin = _flat(banned)
        self.allowed_ids, self.allowed_begin = _flat([table.allowed.get(slot, _NO_IDS) for slot in each])
        biases = [table.bias.get(slot, (_NO_IDS, _NO_VALUES)) for slot in each]
        self.bias_ids, self.bias_begin = _flat([ids for ids, _ in biases])
        self.bias_values = np.concatenate([values for _, values in biases])


def _flat(lists: list[NDArray[np.int32]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """All ids in one array, and where each list begins."""
    begin = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(ids) for ids in lists], out=begin[1:])
    return np.concatenate(lists), begin


class TokenState(Protocol):
    """What sampling reads of the running batch."""

    tokens: NDArray[np.int32]  # [slots, context + 1]
    known: NDArray[np.int32]  # [slots]
    prompt: NDArray[np.int32]  # [slots]
    sampling: SamplingTable


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

    def choose(self, logits: NDArray[np.float32], slots: NDArray[np.int64], state: TokenState) -> NDArray[np.int32]:
        """A token for each row of ``logits`` [E, V], which belong to ``slots``; -1 where nothing is allowed."""
        plain = state.sampling.plain[slots]
        tokens = np.empty(len(slots), np.int32)
        if plain.all():
            return _likeliest(logits)
        if plain.any():
            tokens[plain] = _likeliest(logits[plain])
        drawn = ~plain
        rows = SampleRows(state.sampling, slots[drawn], state)
        tokens[drawn], _ = self._kernel.choose_tokens(logits[drawn], rows)
        return tokens

    def score(self, logits: NDArray[np.float32], tokens: NDArray[np.int32], top: int) -> list[TokenLogprobs]:
        """Log-probabilities of ``tokens`` [E] and of the ``top`` most likely ones under each row of logits [E, V]."""
        top = min(top, logits.shape[1])
        logprobs, ranks, ids, values = self._kernel.score_tokens(np.ascontiguousarray(logits), tokens, top)
        rows = zip(tokens.tolist(), logprobs.tolist(), ranks.tolist(), ids.tolist(), values.tolist(), strict=True)
        return [
            TokenLogprobs(token, logprob, rank, tuple(zip(best, theirs, strict=True)))
            for token, logprob, rank, best, theirs in rows
        ]


def _likeliest(logits: NDArray[np.float32]) -> NDArray[np.int32]:
    """The first of equal ones, which is the lowest id."""
    found: NDArray[np.int32] = logits.argmax(axis=1).astype(np.int32)
    return found
