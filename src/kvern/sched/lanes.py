"""Lanes: the plans in flight on each, and what is done when a plan could not be executed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from kvern.core.plan import Plan
from kvern.sched.sequence import Sequence


@dataclass(slots=True)
class Flight:
    """A plan that was handed out and is not reported yet. ``sequences[i]`` is that of slice i."""

    plan: Plan
    sequences: list[Sequence]
    plain: bool  # every slice samples after one token through all units
    closed: bool  # no slice can leave an open span: the next plan may be made before the report
    repeats: int = 0  # plans like this one that may follow without asking the policies
    doomed: bool = False  # queued behind a plan that failed: its results are void
    interrupted: bool = False


class Quarantine:
    """Finds the sequence that makes plans fail, so that no other pays for it.

    The first failures in a row are answered by trying again. Then the sequences of the failed plan are tried apart,
    half by half; one that fails alone is to blame.
    """

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._failures = 0
        self._groups: deque[frozenset[int]] = deque()

    @property
    def trusted(self) -> bool:
        """No failure since the last plan that passed."""
        return not self._failures

    @property
    def group(self) -> frozenset[int] | None:
        """Only these may be planned now; None: all."""
        return self._groups[0] if self._groups else None

    def failed(self, sequences: tuple[int, ...]) -> int | None:
        """Note a failed plan over these sequences; returns the one to blame, if it is found."""
        self._failures += 1
        if self._groups:
            self._shrink(sequences)
        elif self._failures <= self._retries:
            return None
        if len(sequences) == 1:
            self._failures = 0
            return sequences[0]
        half = len(sequences) // 2
        for part in (sequences[half:], sequences[:half]):
            if part:
                self._groups.appendleft(frozenset(part))
        return None

    def passed(self, sequences: tuple[int, ...]) -> None:
        """Note a plan that worked."""
        self._failures = 0
        if self._groups:
            self._shrink(sequences)

    def skip(self) -> None:
        """The group cannot be planned now; it is not held back for that."""
        self._groups.popleft()

    def _shrink(self, sequences: tuple[int, ...]) -> None:
        rest = self._groups.popleft().difference(sequences)
        if rest:
            self._groups.appendleft(rest)


@dataclass(slots=True)
class Lane:
    number: int
    quarantine: Quarantine
    next_step: int = 0
    flights: deque[Flight] = field(default_factory=deque)

    def open_for(self, depth: int) -> bool:
        """May another plan be made now?"""
        if not self.flights:
            return True
        if self.quarantine.group is not None or not self.quarantine.trusted:
            return False
        last = self.flights[-1]
        return len(self.flights) < depth and last.closed and not last.doomed
