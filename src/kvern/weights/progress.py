"""How downloads report what they have done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, slots=True)
class Part:
    """Reports bytes of one file, which follows ``before`` bytes of others, as bytes of them all."""

    whole: Progress
    before: int
    total: int

    def __call__(self, done: int) -> None:
        self.whole(self.before + done, self.total)
