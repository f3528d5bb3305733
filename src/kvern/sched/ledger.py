"""The ledger: the only place where sequences enter, lose memory and end, and where pages change hands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from kvern.core.errors import InvariantBroken
from kvern.core.limits import EngineConfig
from kvern.core.plan import PageGrant
from kvern.core.request import Request
from kvern.core.views import Rank
from kvern.kv.pool import PagePool
from kvern.kv.prefix_index import PrefixIndex
from kvern.sched.lanes import Lane, Quarantine
from kvern.sched.queues import Queue
from kvern.sched.sequence import Sequence, State
from kvern.sched.shares import Shares


@dataclass(slots=True)
class Claim:
    """Pages kept free for a sequence that waits for them; those ranked below may not use them."""

    sequence: Sequence
    pages: int
    fresh: bool = True  # asked for again since the last plan


@dataclass(slots=True)
class DeviceNews:
    """Which sequences the device is still to be told about."""

    leaving: dict[int, None] = field(default_factory=dict)  # they must go with the next plan
    departing: dict[int, int] = field(default_factory=dict)  # they go with a plan in flight on this lane
    unsure: set[int] = field(default_factory=set)  # unknown what the device knows: start them again


@dataclass(slots=True)
class Counters:
    """Since start."""

    preemptions: int = 0
    prefix_queries_tokens: int = 0
    prefix_hits_tokens: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0


class Ledger:
    """State of the control core. Every method leaves the pages exactly conserved (``audit``)."""

    def __init__(self, config: EngineConfig, cache_key: bytes) -> None:
        self.config = config
        self.index = PrefixIndex(config.page_tokens, key=cache_key, domain=config.cache_domain)
        self.pool = PagePool(config.pages, self.index.forget)
        self.live: dict[int, Sequence] = {}  # waiting, running or yielding
        self.running: dict[int, Sequence] = {}  # holding memory, yielding ones included
        self.draining: dict[int, Sequence] = {}  # over, but in a plan in flight
        self.queue = Queue()
        self.shares = Shares()
        self.lanes = [Lane(number, Quarantine(config.lane_retries)) for number in range(config.lanes)]
        self.device = DeviceNews()
        self.cached: dict[int, int] = {}  # prompt tokens found in the cache, until the first delta tells
        self.claim: Claim | None = None
        self.count = Counters()
        self._reprioritised: dict[int, float] = {}
        self._arrivals = 0

    # -- entering -----------------------------------------------------------------------------------------------

    def arrive(self, request: Request) -> Sequence:
        """A new waiting sequence; ``set_rank`` is to follow at once."""
        self._arrivals += 1
        sequence = Sequence(request, self.config.page_tokens, (0.0, self._arrivals))
        self.live[sequence.id] = sequence
        self.queue.arrive(sequence)
        self.shares.arrive(sequence, self.running.values())
        self.count.prompt_tokens += len(request.prompt)
        return sequence

    def set_rank(self, sequence: Sequence, value: float) -> None:
        sequence.rank = (0.0 if math.isnan(value) else value, sequence.rank[1])

    def reprioritise(self, sequence: Sequence, value: float, now: float) -> bool:
        """Change memory precedence; False when it was changed too recently."""
        last = self._reprioritised.get(sequence.id)
        if last is not None and now - last < self.config.reprioritise_interval_s:
            return False
        self._reprioritised[sequence.id] = now
        self.set_rank(sequence, value)
        return True

    def hits(self, sequence: Sequence) -> tuple[int, ...]:
        """Sealed pages a waiting sequence could start from."""
        request = sequence.request
        if not self.config.prefix_cache or request.sampling.prompt_logprobs is not None:
            return ()  # log-probabilities of the prompt need every position computed
        return self.index.match(sequence.view, request.cache_salt, sequence.known)

    def enter(self, sequence: Sequence) -> None:
        """A waiting sequence holds memory from now on; its view has its shared pages."""
        self.queue.remove(sequence)
        sequence.state = State.RUNNING
        self.running[sequence.id] = sequence
        self.shares.enter(sequence)
        hit = sequence.view.shared
        self.count.prefix_queries_tokens += len(sequence.known)
        self.count.prefix_hits_tokens += hit
        if len(sequence.known) == self.first_length(sequence):
            self.cached.setdefault(sequence.id, min(hit, len(sequence.request.prompt)))

    @staticmethod
    def first_length(sequence: Sequence) -> int:
        """Known tokens before the first one generated here."""
        return len(sequence.request.prompt) + len(sequence.request.accepted)

    def grant(self, sequence: Sequence, pages: list[int]) -> PageGrant:
        """Append pages that were reserved for it."""
        first = sequence.view.count
        sequence.view.grow(pages)
        return PageGrant(sequence.id, first, tuple(pages))

    def immune(self, sequence: Sequence) -> bool:
        """It lost its memory as often as it may: it enters with all pages of its life, and keeps them."""
        return sequence.losses >= self.config.max_losses

    # -- progress -----------------------------------------------------------------------------------------------

    def seal(self, sequence: Sequence) -> None:
        """Full, computed tail pages become a segment that others may share at once."""
        view = sequence.view
        first, full = view.sealed_pages, sequence.computed // self.config.page_tokens
        salt = sequence.request.cache_salt
        pages = view.seal(b"" if not self.config.prefix_cache else self.index.root(salt), full - first)
        if not self.config.prefix_cache:
            return
        self.index.extend(view, salt, sequence.known, full)
        for number, page in enumerate(pages, first):
            if self.index.insert(view.digests[number], sequence.known, number, page):
                self.pool.keep(page)

    def distrust(self, sequence: Sequence) -> None:
        """A fault: what it computed is not to be shared any more."""
        shared = sequence.view.shared // self.config.page_tokens
        for page in sequence.view.pages()[shared:]:
            self.index.forget(page)
            self.pool.drop(page)

    def renew_weights(self, revision: int) -> None:
        """KV made from now on is other KV: chains that begin now have names of their own. Sequences that hold memory
        go on with what they have."""
        self.index.revision = revision
        for sequence in self.live.values():
            if sequence.state is State.WAITING:
                sequence.view.digests.clear()

    # -- leaving ------------------------------------------------------------------------------------------------

    def preempt(self, sequence: Sequence) -> None:
        """Take the memory of a running sequence; it keeps its tokens and waits to be recomputed."""
        if sequence.state is not State.RUNNING or self.immune(sequence):
            raise InvariantBroken(f"sequence {sequence.id} cannot lose its memory now")
        sequence.losses += 1
        self.count.preemptions += 1
        sequence.state = State.YIELDING
        self.drop_claim(sequence)
        if not sequence.flights:
            self.settle_state(sequence)

    def end(self, sequence: Sequence) -> None:
        """It is over, from any state. What a step in flight uses goes when that step is reported."""
        if sequence.state is State.WAITING:
            self.queue.remove(sequence)
        self.running.pop(sequence.id, None)
        del self.live[sequence.id]
        self.shares.leave(sequence)
        self.cached.pop(sequence.id, None)
        self._reprioritised.pop(sequence.id, None)
        self.drop_claim(sequence)
        held = sequence.state is not State.WAITING
        sequence.state = State.ENDED
        if sequence.flights:
            self.draining[sequence.id] = sequence
        elif held:
            self._vacate(sequence)

    def settle_state(self, sequence: Sequence) -> None:
        """No step in flight holds it any more: finish a loss of memory or an end that had to wait for that."""
        if sequence.state is State.ENDED:
            del self.draining[sequence.id]
            self._vacate(sequence)
        elif sequence.state is State.YIELDING:
            del self.running[sequence.id]
            self.shares.note(sequence)
            self._vacate(sequence)
            sequence.computed = 0
            sequence.rewind()
            sequence.state = State.WAITING
            self.queue.come_back(sequence)

    def _vacate(self, sequence: Sequence) -> None:
        self.pool.release(sequence.view.pages())
        sequence.view.clear()
        self.device.unsure.discard(sequence.id)
        self.device.leaving[sequence.id] = None

    def drop_claim(self, sequence: Sequence) -> None:
        if self.claim is not None and self.claim.sequence is sequence:
            self.claim = None

    def highest_first(self) -> list[Sequence]:
        """Live sequences by rank."""
        return sorted(self.live.values(), key=_rank)

    @property
    def idle(self) -> bool:
        """Nothing is in flight."""
        return not any(lane.flights for lane in self.lanes)

    def audit(self) -> None:
        """Exact conservation of pages and of sequences. Raises InvariantBroken."""
        holders = [*self.running.values(), *self.draining.values()]
        self.pool.audit([sequence.view.pages() for sequence in holders])
        if self.pool.indexed != len(self.index):
            raise InvariantBroken(f"{len(self.index)} pages are indexed, and {self.pool.indexed} kept for that")
        if len(self.live) != len(self.running) + len(self.queue):
            raise InvariantBroken("a live sequence neither runs nor waits, or does both")
        flights = [sequence.id for lane in self.lanes for flight in lane.flights for sequence in flight.sequences]
        for sequence in holders:
            if sequence.flights != flights.count(sequence.id):
                raise InvariantBroken(f"sequence {sequence.id} is in {flights.count(sequence.id)} plans in flight")


def _rank(sequence: Sequence) -> Rank:
    return sequence.rank
