"""What is sent and when: salted prompts and arrival times, all from one seed."""

from __future__ import annotations

import json
import random
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvern.core.errors import ConfigError


@dataclass(frozen=True)
class Call:
    """One request: seconds after the start at which it is sent, and its body but for model and streaming."""

    at_s: float
    body: dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """``shared`` of the ``prompt`` tokens are the same in every request (a system prompt, say)."""

    prompt: int = 128
    output: int = 128
    shared: int = 0
    vocabulary: int = 32000  # token ids are drawn from [256, vocabulary)


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """``count`` Poisson arrival times at ``rate`` per second, ascending, the first at 0; rate 0: all at 0."""
    if rate <= 0:
        return [0.0] * count
    source = random.Random(seed)
    times = [0.0]
    while len(times) < count:
        times.append(times[-1] + source.expovariate(rate))
    return times[:count]


def random_prompts(count: int, shape: Shape, seed: int, *, salted: bool) -> list[list[int]]:
    """Token-id prompts. Salted ones differ from run to run, so that no earlier run has filled the prefix cache."""
    if shape.shared > shape.prompt:
        raise ConfigError(f"--shared-prefix-len {shape.shared} is above --input-len {shape.prompt}")
    if shape.vocabulary <= 256 or shape.prompt < 1:
        raise ConfigError("--vocab-size must be above 256 and --input-len at least 1")
    source = random.Random(secrets.randbits(64) if salted else seed)

    def draw(length: int) -> list[int]:
        return [source.randrange(256, shape.vocabulary) for _ in range(length)]

    shared = draw(shape.shared)
    return [shared + draw(shape.prompt - shape.shared) for _ in range(count)]


def random_calls(count: int, rate: float, shape: Shape, seed: int, *, salted: bool = True) -> list[Call]:
    """``count`` completions of random tokens, each of exactly ``shape.output`` tokens (end-of-text is ignored)."""
    prompts = random_prompts(count, shape, seed, salted=salted)
    fixed = {"max_tokens": shape.output, "min_tokens": shape.output, "ignore_eos": True, "temperature": 0}
    return [Call(at, {"prompt": p, **fixed}) for at, p in zip(arrivals(count, rate, seed), prompts, strict=True)]


def file_calls(path: Path, rate: float, seed: int, *, salted: bool = True) -> list[Call]:
    """Requests from a file of JSON lines, each with ``prompt`` (text or ids) or ``messages``, ``max_tokens``, and
    other fields to be sent as they are. A salt is put before the first text. Raises ConfigError with the line."""
    bodies: list[dict[str, Any]] = []
    salt = f"[{secrets.token_hex(8)}] " if salted else ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            body = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(body, dict) or not ({"prompt", "messages"} & set(body)):
            raise ConfigError(f"{path}:{number}: needs prompt or messages")
        bodies.append(_with_salt(body, salt))
    return [Call(at, body) for at, body in zip(arrivals(len(bodies), rate, seed), bodies, strict=True)]


def _with_salt(body: dict[str, Any], salt: str) -> dict[str, Any]:
    if isinstance(body.get("prompt"), str):
        return body | {"prompt": salt + body["prompt"]}
    messages = body.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[0].get("content"), str):
        return body | {"messages": [messages[0] | {"content": salt + messages[0]["content"]}, *messages[1:]]}
    return body
