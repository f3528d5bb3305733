"""Replay: the same events give the same commands, byte for byte. A changed policy shows as the first difference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import msgspec

from kvern.core.events import Command
from kvern.core.views import Policies
from kvern.engine.core import EngineCore
from kvern.engine.record import LogError, read_entry, read_header


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a replay first decided otherwise. ``event`` counts from 0."""

    event: int
    recorded: tuple[Command, ...]
    replayed: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """``digest`` covers all commands as they were decided now, up to and with the first difference."""

    events: int
    digest: str
    difference: Difference | None


def replay(records: Iterable[bytes], policies: Policies) -> Replay:
    """Feed the events of a log to a fresh core and compare its commands with the recorded ones.

    The caller makes ``policies`` (by the names in the log's header, or others to see what would differ). Raises
    LogError when the log is empty, damaged, or has lost its beginning.
    """
    lines = iter(records)
    first = next(lines, None)
    if first is None:
        raise LogError("the event log is empty")
    core = EngineCore(read_header(first).config, policies)
    encode = msgspec.msgpack.Encoder().encode
    digest = blake2b(digest_size=16)
    count = 0
    for line in lines:
        entry = read_entry(line)
        commands = tuple(core.handle(entry.event, entry.now))
        encoded = encode(commands)
        digest.update(encoded)
        if encoded != encode(entry.commands):
            return Replay(count + 1, digest.hexdigest(), Difference(count, entry.commands, commands))
        count += 1
    return Replay(count, digest.hexdigest(), None)
