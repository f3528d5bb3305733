"""Which sequences are in a plan right now, in memory that outlives the engine process.

The client maps the same pages: when the engine dies by any cause, it reads there whose work was being done.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile

from kvern.core.plan import Plan

_ENTRIES = 16384
_BYTES = 8 * (1 + _ENTRIES)


class InFlight:
    """A count and that many request ids (int64, little endian). One writer, the engine's loop."""

    def __init__(self, file: int) -> None:
        """Map an open file of the right size; the file may be closed afterwards."""
        self._memory = mmap.mmap(file, _BYTES)
        self._plans: dict[tuple[int, int], tuple[int, ...]] = {}

    def submitted(self, plan: Plan) -> None:
        """Note the sequences of a plan before it is handed to the executor."""
        self._plans[plan.lane, plan.step] = tuple(piece.sequence for piece in plan.slices)
        self._write()

    def finished(self, lane: int, step: int) -> None:
        """Forget a plan."""
        self._plans.pop((lane, step), None)
        self._write()

    def read(self) -> set[int]:
        """Ids in a plan now, or when the writer died."""
        (count,) = struct.unpack_from("<q", self._memory, 0)
        return set(struct.unpack_from(f"<{min(count, _ENTRIES)}q", self._memory, 8))

    def clear(self) -> None:
        struct.pack_into("<q", self._memory, 0, 0)

    def close(self) -> None:
        self._memory.close()

    def _write(self) -> None:
        ids = [sequence for plan in self._plans.values() for sequence in plan][:_ENTRIES]
        struct.pack_into("<q", self._memory, 0, 0)
        struct.pack_into(f"<{len(ids)}q", self._memory, 8, *ids)
        struct.pack_into("<q", self._memory, 0, len(ids))


def new_file() -> int:
    """A nameless file of the right size, for the client to map and to hand to the engine."""
    with tempfile.TemporaryFile() as file:
        file.truncate(_BYTES)
        return os.dup(file.fileno())
