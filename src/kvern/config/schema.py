"""Every setting of kvern, once: name, type, default, unit, doc. ``kvern.config.flags`` makes flags from it.

A field's metadata: ``doc`` (one sentence), ``unit`` (of the number, or empty), ``aliases`` (further flags),
``parse`` (text to value, where the type's own constructor will not do) and ``choices``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from kvern.core.errors import ConfigError

# To which a model can be brought while it loads; kvern.formats.capabilities says the rest.
WEIGHT_FORMATS = (
    "file", "w8a8", "qoq", "w4a16", "bf16", "f32", "w6", "w4a4_mixed", "bipolar2", "bipolar3", "bipolar4", "q8_0",
    "q4_1", "q4_0", "f16",
)  # fmt: skip
KV_FORMATS = ("bf16", "kv8", "kv4", "kv4-hadamard", "kv4-token", "f32")
_SUFFIXES = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


def parse_bytes(text: str) -> int:
    """``"2GiB"``, ``"1.5G"``, ``"800MB"`` or a plain count, in bytes; GB is 10**9, GiB 2**30.

    Raises ConfigError when the text is none of these or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text, re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{text!r} is not a size in bytes; write for example 2GiB or 800MB")
    value = int(float(match.group(1)) * _SUFFIXES[(match.group(2) or "").upper()])
    if value <= 0:
        raise ConfigError(f"{text!r}: a size in bytes must be above zero")
    return value


def parse_count(text: str) -> int:
    """A whole number above zero. Raises ConfigError."""
    try:
        value = int(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a whole number") from error
    if value <= 0:
        raise ConfigError(f"{value} is not above zero")
    return value


def parse_number(text: str) -> float:
    """A finite number. Raises ConfigError."""
    try:
        value = float(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a number") from error
    if not math.isfinite(value):
        raise ConfigError(f"{text!r} is not a finite number")
    return value


def parse_port(text: str) -> int:
    """A TCP port; 0 lets the system choose. Raises ConfigError."""
    if not text.isdigit() or int(text) > 65535:
        raise ConfigError(f"{text!r} is not a port: 0 to 65535")
    return int(text)


def parse_kv_format(text: str) -> str:
    """One of ``KV_FORMATS``, or ``KEYS/VALUES`` of two (``kvern.formats.kv`` says which go together).

    Raises ConfigError.
    """
    for name in text.split("/"):
        if name not in KV_FORMATS:
            known = ", ".join(KV_FORMATS)
            raise ConfigError(f"{name!r} is not a KV format; choose from {known}, or KEYS/VALUES of two")
    return text


@dataclass(frozen=True)
class Setting:
    """What a field's metadata holds."""

    doc: str
    unit: str = ""
    aliases: tuple[str, ...] = ()
    parse: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()


def setting(
    default: Any, doc: str, *, unit: str = "", aliases: tuple[str, ...] = (), parse: Callable[[str], Any] = str
) -> Any:
    """A dataclass field with its ``Setting``."""
    return field(default=default, metadata={"setting": Setting(doc, unit, aliases, parse)})


def choice(default: Any, doc: str, choices: tuple[str, ...], aliases: tuple[str, ...] = ()) -> Any:
    """A dataclass field that holds one of ``choices``."""
    return field(default=default, metadata={"setting": Setting(doc, "", aliases, str, choices)})


@dataclass(frozen=True)
class ModelSettings:
    """What is loaded, and in which number formats."""

    weight_format: str = choice("file", "number format of the weights; file keeps each as it is", WEIGHT_FORMATS)
    activation_format: str = setting(
        "auto", "number format of the inputs of products, as int8-row (kvern formats lists them); auto: each weight "
        "format's own",
    )  # fmt: skip
    weight_budget: int | None = setting(
        None, "memory that all weights may take, of a model whose weights come in layers (bitstack); by default all",
        unit="bytes, for example 90MiB", parse=parse_bytes,
    )  # fmt: skip
    kv_format: str = setting(
        "bf16", f"number format of the KV cache: {', '.join(KV_FORMATS)}, or KEYS/VALUES of two, as kv8/kv4-token",
        aliases=("--kv-cache-dtype",), parse=parse_kv_format,
    )  # fmt: skip
    backend: str = choice("cpu", "kernels to run on", ("cpu", "reference"))
    chat_template: str | None = setting(None, "file with a chat template, instead of the model's own")


@dataclass(frozen=True)
class EngineSettings:
    """How the engine runs: limits, memory, threads."""

    max_model_len: int | None = setting(
        None, "longest prompt and output together; the model's own by default", unit="tokens",
        aliases=("-c", "--ctx-size"), parse=parse_count,
    )  # fmt: skip
    max_num_seqs: int = setting(64, "sequences running at once", unit="sequences", parse=parse_count)
    max_num_batched_tokens: int = setting(
        512, "tokens computed in one step over all sequences", unit="tokens", parse=parse_count
    )
    memory: int | None = setting(
        None, "memory of the engine process, load included; by default what the plan needs, if it is free",
        unit="bytes, for example 2GiB", parse=parse_bytes,
    )  # fmt: skip
    threads: int | None = setting(
        None, "compute threads; by default one per core this process may use", unit="threads",
        aliases=("-t",), parse=parse_count,
    )  # fmt: skip
    pin_threads: bool = setting(True, "tie compute threads to cores, where they are to have at least half of them")
    prefix_cache: bool = setting(True, "share the KV of equal beginnings between requests")


@dataclass(frozen=True)
class ServerSettings:
    """Where and as what the HTTP server listens."""

    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(8000, "port to listen on; 0 takes a free one", parse=parse_port)
    served_model_name: str | None = setting(
        None, "name clients call the model by; by default its own, or the file's", aliases=("--alias", "-a")
    )
    api_key: str | None = setting(None, "key that clients must send; none by default")
    event_log: bool = setting(True, "log the engine's events, from which a run can be replayed, in the state folder")


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen. None: the model's own default, else that of ``SamplingParams``."""

    temperature: float | None = setting(None, "0 is greedy", parse=parse_number, aliases=("--temp",))
    top_p: float | None = setting(None, "keep the likeliest tokens up to this probability", parse=parse_number)
    top_k: int | None = setting(None, "keep this many likeliest tokens; 0 keeps all", unit="tokens", parse=int)
    min_p: float | None = setting(
        None, "keep tokens at least this likely, as a share of the likeliest", parse=parse_number
    )
    presence_penalty: float | None = setting(None, "taken off tokens already generated", parse=parse_number)
    frequency_penalty: float | None = setting(None, "taken off per earlier occurrence", parse=parse_number)
    repetition_penalty: float | None = setting(
        None, "divides the scores of tokens seen; 1 is off", parse=parse_number
    )
    seed: int | None = setting(None, "the same seed gives the same tokens", parse=int)
    max_tokens: int | None = setting(
        None, "at most this many new tokens", unit="tokens", aliases=("-n",), parse=parse_count
    )
    min_tokens: int | None = setting(None, "no end of text before this many new tokens", unit="tokens", parse=int)
    ignore_eos: bool = setting(False, "go on past the end of text")


def settings_of(group: type[Any]) -> dict[str, tuple[Setting, Any]]:
    """Each field of ``group`` with its setting and its default, in order."""
    return {item.name: (item.metadata["setting"], item.default) for item in fields(group)}
