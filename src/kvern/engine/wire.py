"""What a client and an engine say to each other over a local stream socket.

A frame is a header of 12 bytes (magic ``KVRN``, protocol version u16, kind u16, body length u32, little endian) and a
msgpack body. A frame with another version, an unknown kind or a body over the cap is refused before it is read.
"""

from __future__ import annotations

import enum
import struct
from typing import Any

import msgspec

from kvern.core.errors import KvernError
from kvern.core.events import Delta, Refuse
from kvern.core.ports import EngineInfo, EngineStats
from kvern.core.request import Request

VERSION = 1
MAGIC = b"KVRN"
HEADER = struct.Struct("<4sHHI")
MAX_BODY = 64 << 20  # bytes; the largest honest body holds the prompt log-probabilities of one full context


class WireError(KvernError):
    """The other side sent something that is not this protocol; the connection is over."""


class Submit(msgspec.Struct, frozen=True, array_like=True):
    request: Request


class Abort(msgspec.Struct, frozen=True, array_like=True):
    request: int
    cause: str


class StatsWanted(msgspec.Struct, frozen=True, array_like=True):
    """Answered by one ``Stats`` at once; the engine also sends one unasked as its heartbeat."""


class SetWeightBudget(msgspec.Struct, frozen=True, array_like=True):
    """Bytes that all weights may take from the next step on (None: all they can); answered by one WeightBudgetSet."""

    budget: int | None


class Shutdown(msgspec.Struct, frozen=True, array_like=True):
    """Finish the step that runs, then end."""


class Deltas(msgspec.Struct, frozen=True, array_like=True):
    """All that one step brought, for all requests."""

    deltas: tuple[Delta, ...]


class Refused(msgspec.Struct, frozen=True, array_like=True):
    refusal: Refuse


class Stats(msgspec.Struct, frozen=True, array_like=True):
    stats: EngineStats


class WeightBudgetSet(msgspec.Struct, frozen=True, array_like=True):
    """``refusal`` says why nothing changed; empty when it did."""

    refusal: str


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """Loading: bytes of weights ready of all bytes."""

    done: int
    total: int


class Ready(msgspec.Struct, frozen=True, array_like=True):
    info: EngineInfo
    plan: str  # the memory plan, as printed


class Failed(msgspec.Struct, frozen=True, array_like=True):
    """The engine cannot start, or its loop broke. ``error`` is a class name of ``kvern.core.errors``."""

    error: str
    message: str


class Log(msgspec.Struct, frozen=True, array_like=True):
    level: str
    message: str


FromClient = Submit | Abort | StatsWanted | SetWeightBudget | Shutdown
FromEngine = Deltas | Refused | Stats | WeightBudgetSet | Progress | Ready | Failed | Log
Message = FromClient | FromEngine


class Kind(enum.IntEnum):
    SUBMIT = 1
    ABORT = 2
    STATS_WANTED = 3
    SHUTDOWN = 4
    SET_WEIGHT_BUDGET = 5
    DELTAS = 16
    REFUSED = 17
    STATS = 18
    PROGRESS = 19
    READY = 20
    FAILED = 21
    LOG = 22
    WEIGHT_BUDGET_SET = 23


_TYPES: dict[Kind, type[msgspec.Struct]] = {
    Kind.SUBMIT: Submit,
    Kind.ABORT: Abort,
    Kind.STATS_WANTED: StatsWanted,
    Kind.SHUTDOWN: Shutdown,
    Kind.SET_WEIGHT_BUDGET: SetWeightBudget,
    Kind.DELTAS: Deltas,
    Kind.REFUSED: Refused,
    Kind.STATS: Stats,
    Kind.PROGRESS: Progress,
    Kind.READY: Ready,
    Kind.FAILED: Failed,
    Kind.LOG: Log,
    Kind.WEIGHT_BUDGET_SET: WeightBudgetSet,
}
_KINDS = {cls: kind for kind, cls in _TYPES.items()}
_DECODERS: dict[Kind, msgspec.msgpack.Decoder[Any]] = {k: msgspec.msgpack.Decoder(t) for k, t in _TYPES.items()}
_ENCODER = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """One frame. Raises WireError when the body would pass the cap."""
    body = _ENCODER.encode(message)
    if len(body) > MAX_BODY:
        raise WireError(f"a {type(message).__name__} of {len(body)} bytes is over the cap of {MAX_BODY}")
    return HEADER.pack(MAGIC, VERSION, _KINDS[type(message)], len(body)) + body


def read_header(header: bytes) -> tuple[Kind, int]:
    """Kind and body length. Raises WireError."""
    magic, version, kind, length = HEADER.unpack(header)
    if magic != MAGIC:
        raise WireError("not a kvern frame")
    if version != VERSION:
        raise WireError(f"the other side speaks protocol {version}, this one {VERSION}: install one kvern version")
    if length > MAX_BODY:
        raise WireError(f"a frame of {length} bytes is over the cap of {MAX_BODY}")
    try:
        return Kind(kind), length
    except ValueError as error:
        raise WireError(f"unknown message kind {kind}") from error


def decode(kind: Kind, body: bytes) -> Message:
    """The message of a frame. Raises WireError when the body is not what its kind says."""
    try:
        message: Message = _DECODERS[kind].decode(body)
        return message
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise WireError(f"a damaged {kind.name} message: {error}") from error


class FrameReader:
    """Turns bytes as they arrive into messages; holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Messages completed by ``data``. Raises WireError; the reader is useless after that."""
        self._buffer += data
        messages: list[Message] = []
        while len(self._buffer) >= HEADER.size:
            kind, length = read_header(bytes(self._buffer[: HEADER.size]))
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            messages.append(decode(kind, bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
        return messages
