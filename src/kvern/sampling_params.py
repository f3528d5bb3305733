"""What a caller may ask of sampling (vLLM's names), checked, and how it becomes the engine's ``Sampling``."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvern.core.errors import InvalidRequest
from kvern.core.request import Sampling

MAX_CHOICES = 64
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_IDS = 256
MAX_BIASES = 1024
MAX_LOGPROBS = 20

# field: (lowest, highest, whether the lowest itself is allowed)
_RANGES: dict[str, tuple[float, float, bool]] = {
    "temperature": (0.0, 100.0, True),
    "top_p": (0.0, 1.0, False),
    "min_p": (0.0, 1.0, True),
    "presence_penalty": (-2.0, 2.0, True),
    "frequency_penalty": (-2.0, 2.0, True),
    "repetition_penalty": (0.0, 10.0, False),
}
_COUNTS: dict[str, tuple[int, int]] = {
    "n": (1, MAX_CHOICES),
    "top_k": (-1, 2**31 - 1),
    "max_tokens": (1, 2**31 - 1),
    "min_tokens": (0, 2**31 - 1),
    "seed": (-(2**63), 2**64 - 1),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
}
_OPTIONAL = ("max_tokens", "seed", "logprobs", "prompt_logprobs")


@dataclass(frozen=True)
class ModelLimits:
    """What a request is checked against. ``eos_ids`` end a text unless the client ignores them."""

    vocab_size: int
    max_context: int  # tokens, prompt and output together
    eos_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to continue a prompt. Raises InvalidRequest, naming the field and its limit, when a value is out of range.

    ``max_tokens`` None is what the context leaves; ``seed`` None is drawn; ``top_k`` -1 and 0 are off; ``stop`` may
    be one string; ``logprobs`` k gives the chosen token and the k most likely (0: the chosen one only).
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name, (lowest, highest, inclusive) in _RANGES.items():
            _check_number(name, getattr(self, name), lowest, highest, inclusive)
        for name, bounds in _COUNTS.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                _check_count(name, value, *bounds)
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise _invalid(name, f"must be true or false, not {getattr(self, name)!r}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _invalid("min_tokens", f"is {self.min_tokens}, above max_tokens {self.max_tokens}")
        _check_stops(self.stops)
        _check_ids("stop_token_ids", self.stop_token_ids, MAX_STOP_IDS)
        _check_ids("allowed_token_ids", self.allowed_token_ids, None)
        if self.allowed_token_ids is not None and not len(self.allowed_token_ids):
            raise _invalid("allowed_token_ids", "is empty: no token could be chosen; leave it out to allow all")
        if self.logit_bias is not None:
            _check_bias(self.logit_bias)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        if self.stop is None:
            return ()
        if isinstance(self.stop, str):
            return (self.stop,)
        if not isinstance(self.stop, Sequence):
            raise _invalid("stop", "must be a string or a list of strings")
        return tuple(self.stop)


def check_prompt(prompt: Sequence[int], limits: ModelLimits) -> None:
    """Raises InvalidRequest for a prompt that is empty, leaves no room for a token, or holds ids of no token."""
    if not len(prompt):
        raise _invalid("prompt", "is empty; send at least one token")
    if len(prompt) >= limits.max_context:
        raise InvalidRequest(
            f"the prompt has {len(prompt)} tokens; at most {limits.max_context - 1} fit with one token of output "
            f"in a context of {limits.max_context}",
            field="prompt",
            code="context_length_exceeded",
        )
    _check_vocabulary("prompt", prompt, limits.vocab_size)


def to_samplings(params: SamplingParams, prompt: Sequence[int], limits: ModelLimits) -> list[Sampling]:
    """The engine's parameters of each of the ``n`` choices, checked against the model and the prompt.

    Raises InvalidRequest. A seed that was not given is drawn here: an engine never invents one.
    """
    check_prompt(prompt, limits)
    room = limits.max_context - len(prompt)
    max_tokens = room if params.max_tokens is None else params.max_tokens
    if max_tokens > room:
        raise InvalidRequest(
            f"{len(prompt)} prompt tokens and max_tokens {max_tokens} are more than the context of "
            f"{limits.max_context}; max_tokens may be {room}",
            field="max_tokens",
            code="context_length_exceeded",
        )
    if params.min_tokens > max_tokens:
        raise _invalid("min_tokens", f"is {params.min_tokens}; at most {max_tokens} tokens fit")
    stop_ids = tuple(params.stop_token_ids or ())
    bias = tuple((int(token), float(value)) for token, value in (params.logit_bias or {}).items())
    allowed = tuple(params.allowed_token_ids or ())
    _check_vocabulary("stop_token_ids", stop_ids, limits.vocab_size)
    _check_vocabulary("logit_bias", [token for token, _ in bias], limits.vocab_size)
    _check_vocabulary("allowed_token_ids", allowed, limits.vocab_size)
    if not params.ignore_eos:
        stop_ids = (*stop_ids, *sorted(limits.eos_ids.difference(stop_ids)))
    seed = secrets.randbits(63) if params.seed is None else params.seed % 2**64
    return [
        Sampling(
            temperature=float(params.temperature),
            top_p=float(params.top_p),
            top_k=max(0, params.top_k),
            min_p=float(params.min_p),
            presence_penalty=float(params.presence_penalty),
            frequency_penalty=float(params.frequency_penalty),
            repetition_penalty=float(params.repetition_penalty),
            seed=seed,
            choice=choice,
            max_tokens=max_tokens,
            min_tokens=params.min_tokens,
            stop_token_ids=stop_ids,
            logit_bias=bias,
            allowed_token_ids=allowed,
            logprobs=params.logprobs,
            prompt_logprobs=params.prompt_logprobs,
        )
        for choice in range(params.n)
    ]


def _invalid(field: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{field} {what}", field=field, code="invalid_value")


def _check_number(name: str, value: Any, lowest: float, highest: float, inclusive: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _invalid(name, f"must be a number, not {value!r}")
    if value > highest or value < lowest or (value == lowest and not inclusive):
        bound = "at least" if inclusive else "above"
        raise _invalid(name, f"is {value}; it must be {bound} {lowest:g} and at most {highest:g}")


def _check_count(name: str, value: Any, lowest: int, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _invalid(name, f"must be a whole number, not {value!r}")
    if not lowest <= value <= highest:
        raise _invalid(name, f"is {value}; it must be at least {lowest} and at most {highest}")


def _check_stops(stops: tuple[str, ...]) -> None:
    if len(stops) > MAX_STOP_STRINGS:
        raise _invalid("stop", f"has {len(stops)} strings; at most {MAX_STOP_STRINGS} may be given")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARS:
            raise _invalid("stop", f"must hold strings of 1 to {MAX_STOP_CHARS} characters")


def _check_ids(name: str, ids: Sequence[int] | None, most: int | None) -> None:
    if ids is None:
        return
    if not isinstance(ids, Sequence) or isinstance(ids, str):
        raise _invalid(name, "must be a list of token ids")
    if most is not None and len(ids) > most:
        raise _invalid(name, f"has {len(ids)} ids; at most {most} may be given")
    for token in ids:
        _check_count(name, token, 0, 2**31 - 1)


def _check_bias(bias: Mapping[int, float]) -> None:
    if not isinstance(bias, Mapping):
        raise _invalid("logit_bias", "must map token ids to numbers")
    if len(bias) > MAX_BIASES:
        raise _invalid("logit_bias", f"has {len(bias)} entries; at most {MAX_BIASES} may be given")
    for token, value in bias.items():
        _check_count("logit_bias", token, 0, 2**31 - 1)
        _check_number("logit_bias", value, -100.0, 100.0, True)


def _check_vocabulary(name: str, ids: Iterable[int], vocab_size: int) -> None:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise _invalid(name, f"holds token id {token}; the ids of this model are 0 to {vocab_size - 1}")
