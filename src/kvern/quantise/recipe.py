"""What to make of each matrix, and which steps to take on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Method = Literal["nearest", "clip search", "compensated"]


@dataclass(frozen=True, slots=True)
class Choice:
    """One matrix. ``activation`` None: the format's own. "nearest" is the format's plain encoding, "clip search"
    chooses the range of each group, "compensated" does that and carries errors on (GPTQ)."""

    format: str
    activation: str | None = None
    method: Method = "compensated"


@dataclass(frozen=True, slots=True)
class Recipe:
    """``choices`` by canonical name, ``default`` for the others. ``smooth_inputs``: fold scales into the maker of
    each input; ``smooth_attention``: fold key scales into queries. ``embedding_share``: how much the rows of a tied
    table count as inputs, against their use as outputs."""

    default: Choice
    choices: Mapping[str, Choice] = field(default_factory=dict)
    smooth_inputs: bool = False
    smooth_attention: bool = False
    embedding_share: float = 0.1

    def of(self, name: str) -> Choice:
        return self.choices.get(name, self.default)
