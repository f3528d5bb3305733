"""What a client asks for, as it crosses from the server (or a trace) into the engine."""

from __future__ import annotations

import msgspec


class Sampling(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How tokens are chosen. Names are vLLM's. Random numbers depend on (seed, choice, position) only."""

    temperature: float = 1.0  # 0 is greedy; ties go to the lowest id
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0  # resolved before the engine: an engine never invents one
    choice: int = 0  # index among the `n` samples of one request
    max_tokens: int = 16
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()  # end-of-text ids included, unless the client ignores them
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()  # empty: all
    logprobs: int | None = None  # None: off; k: the chosen token and the k most likely
    prompt_logprobs: int | None = None


class Request(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One sequence to be continued. ``id`` is made by the server, never by the client.

    ``prompt`` are the client's token ids; ``accepted`` are tokens generated earlier (resume after an engine
    restart): the engine continues after them and does not emit them again.
    """

    id: int
    prompt: tuple[int, ...]
    sampling: Sampling
    accepted: tuple[int, ...] = ()
    tenant: str = ""
    weight: float = 1.0  # of the tenant, for weighted fair order
    cache_salt: bytes = b""  # domain of the prefix cache: requests share KV only within one salt
    arrival_s: float = 0.0  # on the engine's clock
    deadline_s: float | None = None
