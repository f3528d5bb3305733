"""Sampling fields of a request, checked against their ranges, as ``core.Sampling``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from kvern.core.errors import InvalidRequest
from kvern.core.request import Sampling
from kvern.server.fields import SamplingFields
from kvern.server.options import Limits

# field -> (lowest, highest, default); the default holds when neither the request nor the model's config says.
_RANGES: dict[str, tuple[float, float, float]] = {
    "temperature": (0.0, 2.0, 1.0),
    "top_p": (0.0, 1.0, 1.0),
    "min_p": (0.0, 1.0, 0.0),
    "presence_penalty": (-2.0, 2.0, 0.0),
    "frequency_penalty": (-2.0, 2.0, 0.0),
    "repetition_penalty": (0.01, 10.0, 1.0),
}
_BIAS_LIMIT = 100.0
_SEED_LIMIT = 1 << 63


class Wanted(msgspec.Struct, frozen=True):
    """What one request asks of each of its sequences."""

    sampling: Sampling  # choice 0; the others differ in `choice` only
    n: int
    stops: tuple[str, ...]
    include_stop: bool
    skip_special: bool
    hidden_stop_ids: frozenset[int]  # ids whose text is left out when they end the answer


def out_of_range(field: str, value: object, lowest: object, highest: object) -> InvalidRequest:
    return InvalidRequest(
        f"{field} is {value}; it must be from {lowest} to {highest}", field=field, code="out_of_range"
    )


def within(field: str, value: int | None, lowest: int, highest: int, default: int) -> int:
    """``value``, or ``default`` for None. Raises InvalidRequest naming the field and the limit."""
    if value is None:
        return default
    if not lowest <= value <= highest:
        raise out_of_range(field, value, lowest, highest)
    return value


class SamplingReader:
    """Turns request fields into ``Wanted``; holds what does not change between requests."""

    def __init__(
        self, limits: Limits, vocab_size: int, eos_ids: frozenset[int], defaults: dict[str, float | int], seed: Any
    ) -> None:
        self._limits = limits
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._defaults = defaults
        self._draw_seed = seed

    def read(self, body: SamplingFields, max_tokens: int, logprobs: int | None, echoed: int | None = None) -> Wanted:
        """``max_tokens`` is resolved already; ``echoed`` asks for the prompt's own logprobs. Raises InvalidRequest."""
        limits = self._limits
        stops = self._stops(body.stop)
        stop_ids = self._ids("stop_token_ids", body.stop_token_ids, limits.stop_token_ids)
        ends = frozenset(stop_ids) if body.ignore_eos else self._eos_ids | frozenset(stop_ids)
        include = bool(body.include_stop_str_in_output)
        seed = body.seed
        if seed is not None and not -_SEED_LIMIT <= seed < _SEED_LIMIT:
            raise out_of_range("seed", seed, -_SEED_LIMIT, _SEED_LIMIT - 1)
        sampling = Sampling(
            **{name: self._number(name, getattr(body, name)) for name in _RANGES},
            top_k=self._top_k(body.top_k),
            seed=(self._draw_seed() if seed is None else seed) % _SEED_LIMIT,
            max_tokens=max_tokens,
            min_tokens=within("min_tokens", body.min_tokens, 0, max_tokens, 0),
            stop_token_ids=tuple(sorted(ends)),
            logit_bias=self._bias(body.logit_bias),
            allowed_token_ids=self._ids("allowed_token_ids", body.allowed_token_ids, self._vocab_size),
            logprobs=logprobs,
            prompt_logprobs=echoed,
        )
        return Wanted(
            sampling,
            within("n", body.n, 1, limits.n, 1),
            stops,
            include,
            body.skip_special_tokens is not False,
            frozenset() if include else frozenset(stop_ids),
        )

    def _number(self, name: str, value: float | None) -> float:
        lowest, highest, default = _RANGES[name]
        if value is None:
            value = self._defaults.get(name, default)
        if not (math.isfinite(value) and lowest <= value <= highest) or (name == "top_p" and value == 0):
            raise out_of_range(name, value, "above 0" if name == "top_p" else lowest, highest)
        return float(value)

    def _top_k(self, value: int | None) -> int:
        """0 and -1 both mean off, as in vLLM."""
        value = int(self._defaults.get("top_k", 0)) if value is None else value
        return max(0, within("top_k", value, -1, (1 << 31) - 1, 0))

    def _stops(self, stop: str | list[str] | None) -> tuple[str, ...]:
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        limits = self._limits
        if len(stops) > limits.stop_strings:
            raise out_of_range("stop", f"{len(stops)} strings", 0, f"{limits.stop_strings} strings")
        for text in stops:
            if not 0 < len(text) <= limits.stop_chars:
                raise out_of_range("stop", f"a string of {len(text)} characters", 1, limits.stop_chars)
        return stops

    def _ids(self, field: str, ids: Iterable[int] | None, most: int) -> tuple[int, ...]:
        found = tuple(ids or ())
        if len(found) > most:
            raise out_of_range(field, f"{len(found)} ids", 0, f"{most} ids")
        for token in found:
            if not 0 <= token < self._vocab_size:
                raise out_of_range(field, token, 0, self._vocab_size - 1)
        return found

    def _bias(self, bias: dict[str, float] | None) -> tuple[tuple[int, float], ...]:
        field, most = "logit_bias", self._limits.logit_bias
        if not bias:
            return ()
        if len(bias) > most:
            raise out_of_range(field, f"{len(bias)} entries", 0, f"{most} entries")
        pairs = {}
        for name, value in bias.items():
            if not (name.isascii() and name.isdigit() and len(name) <= 10):
                raise InvalidRequest(f"{field}: {name[:40]!r} is not a token id", field=field, code="invalid_type")
            token = int(name)
            if token >= self._vocab_size:
                raise out_of_range(field, f"for token {token}", 0, self._vocab_size - 1)
            if not -_BIAS_LIMIT <= value <= _BIAS_LIMIT:
                raise out_of_range(field, value, -_BIAS_LIMIT, _BIAS_LIMIT)
            pairs[token] = value
        return tuple(sorted(pairs.items()))
