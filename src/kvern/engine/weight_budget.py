"""Changing how much memory the weights take, between two steps of a serving engine."""

from __future__ import annotations

from collections.abc import Callable

from kvern.core.errors import ConfigError
from kvern.core.events import WeightsChanged


class WeightBudget:
    """Counts the changes, which name the KV that each set of weights makes. ``resize`` waits for the step under way
    and raises ConfigError for a budget that is too small; None: a back end whose weights have one size."""

    def __init__(self, resize: Callable[[int | None], None] | None) -> None:
        self._resize = resize
        self._revision = 0

    def set(self, budget: int | None) -> WeightsChanged | str:
        """The event of the change, or why there was none. ``budget`` in bytes; None: all weights."""
        if self._resize is None:
            return "the weights of this back end have one size"
        try:
            self._resize(budget)
        except ConfigError as error:
            return str(error)
        self._revision += 1
        return WeightsChanged(self._revision)
