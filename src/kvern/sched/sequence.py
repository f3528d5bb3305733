"""A sequence: known tokens, two counters, at most one open span. No feature adds a field here."""

from __future__ import annotations

import enum

from kvern.core.plan import OpenSpan
from kvern.core.request import Request
from kvern.core.views import Rank
from kvern.kv.segments import KvView


class State(enum.Enum):
    WAITING = "holds no memory"
    RUNNING = "holds memory"
    YIELDING = "its memory was taken and goes when the steps in flight are reported"
    ENDED = "over; what it holds goes when the steps in flight are reported"


class Sequence:
    """Changed by the ledger and the plan builder only; policies see it as a ``SequenceView``.

    ``planned`` runs ahead of ``computed`` by what is in flight. ``pending`` tokens are being sampled by plans in
    flight. ``parked`` is the confirmed open span. ``flights`` counts plans in flight that hold a slice of it.
    """

    __slots__ = (
        "computed",
        "flights",
        "id",
        "known",
        "lane",
        "limit",
        "losses",
        "parked",
        "pending",
        "planned",
        "rank",
        "request",
        "state",
        "view",
    )

    def __init__(self, request: Request, page_tokens: int, rank: Rank) -> None:
        self.id = request.id
        self.request = request
        self.known: list[int] = [*request.prompt, *request.accepted]
        self.limit = len(request.prompt) + request.sampling.max_tokens
        self.planned = 0
        self.computed = 0
        self.pending = 0
        self.parked: OpenSpan | None = None
        self.flights = 0
        self.lane = 0
        self.view = KvView(page_tokens)
        self.state = State.WAITING
        self.rank = rank
        self.losses = 0

    @property
    def open(self) -> OpenSpan | None:
        """The open span to be continued; none once a plan in flight takes it through the last unit."""
        span = self.parked
        return span if span is not None and self.planned <= span.begin else None

    @property
    def length(self) -> int:
        """Tokens known or being sampled."""
        return len(self.known) + self.pending

    @property
    def work(self) -> int:
        """Tokens that could be planned now; none when the last token it may have is known or being sampled."""
        length = len(self.known) + self.pending
        return 0 if length >= self.limit else length - self.planned

    def rewind(self) -> None:
        """Back to what is confirmed through all units; an open span is given up."""
        self.planned = self.computed
        self.pending = 0
        self.parked = None
