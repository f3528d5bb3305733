"""What policies see and what they are: read-only views, and one frozen record of small functions per family.

A policy reads a view and returns a decision; only the ledger changes state. The mechanism keeps four laws whatever a
policy says: memory precedence (``rank``) is asked once; memory is taken only from sequences ranked below; the
top-ranked sequence can always finish; and each sequence loses its memory a bounded number of times.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvern.core.errors import ConfigError
from kvern.core.events import Event, Interrupt
from kvern.core.limits import EngineConfig
from kvern.core.plan import OpenSpan, Plan
from kvern.core.request import Request

Rank = tuple[float, int]  # the lower keeps its memory; (what the policy said, number of arrival)


class SequenceView(Protocol):
    """One sequence, to be read only."""

    @property
    def id(self) -> int: ...
    @property
    def request(self) -> Request: ...
    @property
    def rank(self) -> Rank: ...
    @property
    def losses(self) -> int:
        """How often its memory was taken."""

    @property
    def planned(self) -> int:
        """Tokens planned through all units, confirmed or in flight."""

    @property
    def computed(self) -> int:
        """Tokens confirmed through all units."""

    @property
    def open(self) -> OpenSpan | None: ...
    @property
    def length(self) -> int:
        """Tokens known or being sampled in a plan in flight."""

    @property
    def limit(self) -> int:
        """Tokens it may have at the end."""

    @property
    def work(self) -> int:
        """Tokens that could be planned now; 0 when there is nothing to compute."""


class View(Protocol):
    """The engine as policies see it. Derived numbers live here so that two policies never disagree about them."""

    @property
    def now(self) -> float: ...
    @property
    def config(self) -> EngineConfig: ...
    @property
    def measured(self) -> Mapping[str, float]:
        """Values of ``Measured`` events by name."""

    @property
    def pages_available(self) -> int:
        """Pages that are free or only cached."""

    def running(self) -> Sequence[SequenceView]:
        """Sequences that hold memory, in order of entry."""

    def preempted(self) -> Sequence[SequenceView]:
        """Waiting sequences that lost their memory, the highest-ranked first."""

    def queues(self) -> Mapping[str, Mapping[int, SequenceView]]:
        """Waiting sequences that never ran, by tenant, in order of arrival."""

    def shares(self) -> Mapping[str, float]:
        """Tokens served to each tenant that has live sequences, over its weight; running prompts count whole."""

    def pages_short(self, sequence: SequenceView, tokens: int) -> int:
        """Available pages that covering ``tokens`` of the sequence would use, cached ones it can share included."""

    def plans(self) -> Sequence[Plan]:
        """Plans in flight, the oldest of each lane first."""

    def find(self, sequence: int) -> SequenceView | None: ...


class Refusal(enum.Enum):
    """Why a slice was not taken. Nothing changed."""

    CURSOR = "nothing to compute, already in this plan, or not where the cursor or the open span is"
    LANE = "in flight, or leaving the device, on another lane"
    BUDGET = "no room left in this step"
    SEATS = "max_running sequences hold memory"
    ADMISSION = "the admission policy said not now"
    MEMORY = "pages are short and cannot be taken"
    QUARANTINE = "a failed plan is being tried in parts"


class Builder(Protocol):
    """Builds one plan. Each take is checked and reserves its memory, or is refused and changes nothing."""

    @property
    def lane(self) -> int: ...
    @property
    def view(self) -> View: ...
    @property
    def room(self) -> int:
        """Rows that this plan may still hold."""

    def running(self) -> list[SequenceView]:
        """Sequences with memory that could be planned now, in order of entry."""

    def waiting(self) -> Iterator[SequenceView]:
        """The queue in the order policy's order."""

    def offer(self, sequence: SequenceView, room: int | None = None) -> Refusal | None:
        """Take what the slicing policy cuts from at most ``room`` rows; enters a waiting sequence if admitted."""

    def take(self, sequence: SequenceView, tokens: int, unit_end: int) -> Refusal | None:
        """Take the next ``tokens`` (or the whole open span) down to ``unit_end``."""

    def wait_until(self, at_s: float) -> None:
        """If the plan stays empty, ask again at this time (a batching window)."""


def first_arrived(sequence: SequenceView, view: View) -> float:  # noqa: ARG001 - the shape of the seam
    """Equal ranks: the number of arrival decides."""
    return 0.0


def no_reaction(event: Event, view: View) -> Sequence[Interrupt]:  # noqa: ARG001 - the shape of the seam
    """Interrupt nothing."""
    return ()


@dataclass(frozen=True)
class Order:
    """Who keeps memory (asked once) and in which order the queue is offered (asked for each plan, read lazily)."""

    name: str
    arrange: Callable[[View], Iterator[SequenceView]]
    rank: Callable[[SequenceView, View], float] = first_arrived
    claims: tuple[str, ...] = ("order",)


@dataclass(frozen=True)
class Admission:
    """May a waiting sequence enter now? The number of tokens to hold pages for at once, or None: not now.

    Under a steady composing policy it is asked again when anything but new tokens happened, not by the clock.
    """

    name: str
    admit: Callable[[SequenceView, View], int | None]
    claims: tuple[str, ...] = ("admission",)


@dataclass(frozen=True)
class Slicing:
    """How much of a sequence's work in one plan: ``(tokens, unit_end)`` within ``room`` rows; 0 tokens: not now."""

    name: str
    cut: Callable[[SequenceView, int, View], tuple[int, int]]
    claims: tuple[str, ...] = ("slicing",)


@dataclass(frozen=True)
class Composing:
    """Fills a plan. ``steady`` promises: with the same sequences and nothing new, the same choice again."""

    name: str
    compose: Callable[[Builder], None]
    steady: bool = False
    claims: tuple[str, ...] = ("composing",)


@dataclass(frozen=True)
class Preemption:
    """Whose memory goes, from candidates ranked below the one in need; and whose plan is interrupted on an event."""

    name: str
    victims: Callable[[Sequence[SequenceView], int, View], Iterable[SequenceView]]
    on: Callable[[Event, View], Sequence[Interrupt]] = no_reaction
    interruptible: bool = False  # plans may stop at a unit boundary
    claims: tuple[str, ...] = ("preemption",)


@dataclass(frozen=True)
class Policies:
    """One policy of each family. Raises ConfigError when two of them claim the same scope."""

    order: Order
    admission: Admission
    slicing: Slicing
    composing: Composing
    preemption: Preemption

    def __post_init__(self) -> None:
        owners: dict[str, str] = {}
        for policy in (self.order, self.admission, self.slicing, self.composing, self.preemption):
            for claim in policy.claims:
                if claim in owners:
                    both = f"{owners[claim]!r} and {policy.name!r}"
                    raise ConfigError(f"policies {both} both claim {claim!r}; drop one")
                owners[claim] = policy.name

    @property
    def names(self) -> tuple[str, ...]:
        """Of each family, in the order of the fields."""
        return (self.order.name, self.admission.name, self.slicing.name, self.composing.name, self.preemption.name)
