"""The event log: what happened and what was decided, one record each.

A record is a msgpack array. The first is the header; each further one is ``[now, event, commands]``. Framing, files
and rotation belong to the sink. Only a log that still has its first record can be replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from kvern.core.errors import KvernError
from kvern.core.events import Command, Event
from kvern.core.limits import EngineConfig
from kvern.core.views import Policies

VERSION = 1


class LogError(KvernError):
    """A record is not of this version or is damaged."""


class Header(msgspec.Struct, frozen=True, array_like=True):
    """What a replay needs besides the events."""

    config: EngineConfig
    policies: tuple[str, ...]  # names by family, in the order of ``Policies``
    version: int = VERSION
    magic: str = "kvern-events"


class Entry(msgspec.Struct, frozen=True, array_like=True):
    now: float
    event: Event
    commands: tuple[Command, ...]


class Sink(Protocol):
    """Keeps records in order; decides itself how many."""

    def append(self, record: bytes) -> None: ...

    def flush(self) -> None: ...


class Recorder:
    """Writes the log of one core to a sink."""

    def __init__(self, sink: Sink, config: EngineConfig, policies: Policies) -> None:
        self._sink = sink
        self._encode = msgspec.msgpack.Encoder().encode
        sink.append(self._encode(Header(config, policies.names)))

    def note(self, event: Event, now: float, commands: Sequence[Command]) -> None:
        """Append one event and the commands it led to."""
        self._sink.append(self._encode((now, event, commands)))

    def flush(self) -> None:
        self._sink.flush()


_HEADER = msgspec.msgpack.Decoder(Header)
_ENTRY = msgspec.msgpack.Decoder(Entry)


def read_header(record: bytes) -> Header:
    """The first record of a log. Raises LogError when it is none, or of another version."""
    try:
        header = _HEADER.decode(record)
    except msgspec.DecodeError as error:
        raise LogError(f"this is not the first record of an event log: {error}") from error
    if header.magic != "kvern-events" or header.version != VERSION:
        raise LogError(f"{header.magic} version {header.version}: this kvern reads kvern-events version {VERSION}")
    return header


def read_entry(record: bytes) -> Entry:
    """A further record. Raises LogError when it is damaged."""
    try:
        return _ENTRY.decode(record)
    except msgspec.DecodeError as error:
        raise LogError(f"a record of the event log is damaged: {error}") from error
