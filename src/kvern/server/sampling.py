"""Sampling fields of a request as ``SamplingParams``, and what is left of them outside the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from kvern.core.errors import InvalidRequest
from kvern.core.request import Sampling
from kvern.sampling_params import ModelLimits, SamplingParams, to_samplings
from kvern.server.fields import SamplingFields
from kvern.server.options import ServerOptions

_PLAIN = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
)  # fmt: skip


class Wanted(msgspec.Struct, frozen=True):
    """What one request asks of each of its sequences."""

    params: SamplingParams
    max_tokens: int | None  # as the client named it; 0 is an echo alone, for which the engine makes one token
    length_field: str  # the client's name for it: max_tokens or max_completion_tokens
    stop_token_ids: frozenset[int]  # the client's own


def read_sampling(
    body: SamplingFields,
    options: ServerOptions,
    *,
    max_tokens: tuple[str, int | None],
    logprobs: int | None,
    prompt_logprobs: int | None = None,
) -> Wanted:
    """Check the sampling fields. ``max_tokens`` is (the client's name for it, its value). Raises InvalidRequest."""
    limits = options.limits
    if body.n is not None and not 1 <= body.n <= limits.n:
        raise InvalidRequest(f"n is {body.n}; it must be from 1 to {limits.n}", field="n", code="invalid_value")
    given: dict[str, Any] = dict(options.sampling_defaults)
    given.update({name: value for name in _PLAIN if (value := getattr(body, name)) is not None})
    field, length = max_tokens
    if length is not None and length < 0:
        raise InvalidRequest(f"{field} is {length}; it must be at least 1", field=field, code="invalid_value")
    try:
        params = SamplingParams(
            **given,
            n=body.n or 1,
            seed=options.draw_seed() if body.seed is None else body.seed,
            stop=body.stop,
            stop_token_ids=body.stop_token_ids,
            ignore_eos=bool(body.ignore_eos),
            max_tokens=1 if length == 0 else length,
            min_tokens=body.min_tokens or 0,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            skip_special_tokens=body.skip_special_tokens is not False,
            include_stop_str_in_output=bool(body.include_stop_str_in_output),
            logit_bias=_token_ids(body.logit_bias),
            allowed_token_ids=body.allowed_token_ids,
        )
    except InvalidRequest as error:
        raise renamed(error, {"max_tokens": field}) from error
    return Wanted(params, length, field, frozenset(body.stop_token_ids or ()))


def samplings(wanted: Wanted, prompt: Sequence[int], limits: ModelLimits) -> list[Sampling]:
    """One ``Sampling`` per choice for this prompt. Raises InvalidRequest in the client's own field names."""
    try:
        return to_samplings(wanted.params, prompt, limits)
    except InvalidRequest as error:
        raise renamed(error, {"max_tokens": wanted.length_field}) from error


def renamed(error: InvalidRequest, names: dict[str, str]) -> InvalidRequest:
    """The same error about the field as the client called it."""
    field = names.get(error.field or "", error.field)
    message = str(error)
    if error.field and field != error.field:
        message = message.replace(error.field, field or error.field)
    return InvalidRequest(message, field=field, code=error.code)


def _token_ids(bias: dict[str, float] | None) -> dict[int, float] | None:
    """JSON keys are strings; the engine's are ids."""
    if not bias:
        return None
    for name in bias:
        if not (name.isascii() and name.isdigit() and len(name) <= 10):
            raise InvalidRequest(
                f"logit_bias: {name[:40]!r} is not a token id", field="logit_bias", code="invalid_value"
            )
    return {int(name): value for name, value in bias.items()}
