"""What a server is told at start: names, keys, limits, defaults. Nothing here is read from the environment."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on one request; ``GET /v1/limits`` shows them."""

    body_bytes: int = 8 << 20
    header_bytes: int = 64 << 10  # request line and all headers
    messages: int = 1024
    prompts: int = 256  # in one completions request
    sequences: int = 256  # prompts times n
    n: int = 16
    stop_strings: int = 16
    stop_chars: int = 256  # of one stop string
    stop_token_ids: int = 128
    logit_bias: int = 1024  # entries
    logprobs: int = 20
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
    allowed_origins: tuple[str, ...] = ()  # web origins beside the server's own; "*" allows all
    now: Callable[[], float] = time.time  # seconds since the epoch, for `created`
    monotonic: Callable[[], float] = time.monotonic  # seconds, for measured durations
    draw_seed: Callable[[], int] = lambda: secrets.randbits(63)  # for requests without `seed`
