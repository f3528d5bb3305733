"""What a server is told at start: names, keys, limits, defaults. Nothing here is read from the environment."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from kvern.sampling_params import MAX_BIASES, MAX_LOGPROBS, MAX_STOP_CHARS, MAX_STOP_IDS, MAX_STOP_STRINGS


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on one request; ``GET /v1/limits`` shows them."""

    body_bytes: int = 8 << 20
    body_seconds: float = 60.0  # for the body to arrive
    header_bytes: int = 64 << 10  # request line and all headers
    tokenize_chars: int = 1 << 20  # of a text for /tokenize
    messages: int = 1024
    prompts: int = 256  # in one completions request
    sequences: int = 256  # prompts times n
    n: int = 16
    stop_strings: int = MAX_STOP_STRINGS
    stop_chars: int = MAX_STOP_CHARS  # of one stop string
    stop_token_ids: int = MAX_STOP_IDS
    logit_bias: int = MAX_BIASES  # entries
    logprobs: int = MAX_LOGPROBS
    template_variables: int = 32  # entries of chat_template_kwargs
    request_id_chars: int = 128


@dataclass(frozen=True)
class ServerOptions:
    """Options of ``make_app``. The clocks and the source of seeds are passed in so that tests decide them."""

    model_names: tuple[str, ...]  # names clients may use; the first is shown in answers
    api_keys: tuple[str, ...] = ()  # empty: no key is asked for
    limits: Limits = field(default_factory=Limits)
    sampling_defaults: Mapping[str, float | int] = field(default_factory=dict)  # e.g. of generation_config.json
    ping_interval_s: float = 15.0  # of silence on a stream before a comment keeps it open
    allowed_origins: tuple[str, ...] = ()  # web origins beside its own address; "*" allows all
    now: Callable[[], float] = time.time  # seconds since the epoch, for `created`
    monotonic: Callable[[], float] = time.monotonic  # seconds, for measured durations
    draw_seed: Callable[[], int] = lambda: secrets.randbits(63)  # for requests without `seed`
