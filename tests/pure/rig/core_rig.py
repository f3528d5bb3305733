"""One core and one model device, driven event by event, with the ledger's laws checked after each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from model_device import ModelDevice, expected

from kvern.core.events import Arrived, Command, Delta, Emit, Event, Execute, Interrupt, Refuse
from kvern.core.limits import EngineConfig
from kvern.core.plan import Plan, Slice
from kvern.core.request import Request, Sampling
from kvern.core.views import Policies
from kvern.engine.core import EngineCore
from kvern.engine.record import Recorder


@dataclass
class ListSink:
    """Keeps the event log in memory."""

    records: list[bytes] = field(default_factory=list)

    def append(self, record: bytes) -> None:
        self.records.append(record)

    def flush(self) -> None:
        """Nothing is buffered."""


def request(key: int, prompt: int | tuple[int, ...], tokens: int = 8, **more: object) -> Request:
    """A greedy request; an int ``prompt`` is a length."""
    ids = tuple((key * 7 + i * 3) % 50 for i in range(prompt)) if isinstance(prompt, int) else prompt
    stops = more.pop("stops", ())
    salt = more.pop("salt", b"")
    return Request(key, ids, Sampling(0.0, max_tokens=tokens, stop_token_ids=stops), cache_salt=salt, **more)


class Rig:
    """Feeds events, keeps plans in flight until ``step`` is called, and checks what comes out."""

    def __init__(self, config: EngineConfig, policies: Policies) -> None:
        self.core = EngineCore(config, policies, cache_key=b"k")
        self.device = ModelDevice(config.pages, config.page_tokens, config.units)
        self.sink = ListSink()
        self.recorder = Recorder(self.sink, config, policies)
        self.flights: list[deque[Plan]] = [deque() for _ in range(config.lanes)]
        self.interrupted: set[tuple[int, int]] = set()
        self.doomed: set[tuple[int, int]] = set()
        self.steps = [-1] * config.lanes
        self.now = 0.0
        self.requests: dict[int, Request] = {}
        self.finish: dict[int, str] = {}
        self.deltas: dict[int, list[Delta]] = {}
        self.refused: dict[int, Refuse] = {}
        self._used: dict[tuple[int, int], dict[int, frozenset[int]]] = {}  # pages of each sequence in flight
        self._tables: dict[int, list[int]] = {}

    @property
    def out(self) -> dict[int, list[int]]:
        """Tokens emitted, by request."""
        return {key: [token for delta in deltas for token in delta.tokens] for key, deltas in self.deltas.items()}

    def handle(self, event: Event) -> list[Command]:
        commands = self.core.handle(event, self.now)
        self.recorder.note(event, self.now, commands)
        for command in commands:
            if isinstance(command, Execute):
                self._submit(command.plan)
            elif isinstance(command, Emit):
                for delta in command.deltas:
                    self._delta(delta)
            elif isinstance(command, Interrupt):
                self.interrupted.add((command.lane, command.step))
            elif isinstance(command, Refuse):
                self.refused[command.request] = command
        self.core.audit()
        return commands

    def arrive(self, item: Request) -> list[Command]:
        self.requests[item.id] = item
        self.deltas[item.id] = []
        return self.handle(Arrived(item))

    def step(
        self, lane: int = 0, stop_at: Callable[[Slice], int] | None = None, faulty: frozenset[int] = frozenset()
    ) -> list[Command]:
        """Report the oldest plan of a lane."""
        plan = self._land(lane)
        if (lane, plan.step) in self.doomed:  # what it reads was never computed
            return self.handle(self.device.run_in_vain(plan))
        return self.handle(self.device.run(plan, stop_at=stop_at if plan.interruptible else None, faulty=faulty))

    def fail(self, lane: int = 0, *, applied: bool = True) -> list[Command]:
        """The oldest plan of a lane could not be executed."""
        self.doomed.update((lane, plan.step) for plan in list(self.flights[lane])[1:])
        return self.handle(self.device.fail(self._land(lane), "made to fail", applied=applied))

    def _land(self, lane: int) -> Plan:
        plan = self.flights[lane].popleft()
        del self._used[lane, plan.step]
        return plan

    def drain(self, most: int = 100_000) -> None:
        """Run until nothing is in flight."""
        while any(self.flights):
            most -= 1
            assert most > 0, "it does not come to an end"
            for lane, plans in enumerate(self.flights):
                if plans:
                    self.step(lane)

    def check_done(self) -> None:
        """Everyone got an answer, the right one, and nothing is left behind."""
        stats = self.core.stats()
        assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
        left = set(self.core._ledger.device.leaving)  # nobody, unless the last plan failed
        assert set(self.device.residents) <= left
        for key, item in self.requests.items():
            if key in self.refused:
                continue
            tokens, reason = expected(item)
            assert key in self.finish, f"request {key} never finished"
            got = [token for delta in self.deltas[key] for token in delta.tokens]
            if self.finish[key] in ("abort", "error"):
                assert got == tokens[: len(got)]
            else:
                assert (got, self.finish[key]) == (tokens, reason)

    def _delta(self, delta: Delta) -> None:
        assert delta.request not in self.finish, "a delta after the last one"
        self.deltas[delta.request].append(delta)
        if delta.finish is not None:
            self.finish[delta.request] = delta.finish

    def _submit(self, plan: Plan) -> None:
        config = self.core.config
        assert plan.step > self.steps[plan.lane]
        self.steps[plan.lane] = plan.step
        assert len(self.flights[plan.lane]) < config.depth
        assert sum(piece.end - piece.begin for piece in plan.slices) <= config.max_step_tokens
        assert len({piece.sequence for piece in plan.slices}) == len(plan.slices)
        for sequence in plan.ends:
            self._tables.pop(sequence, None)
        for start in plan.starts:
            self._tables[start.sequence] = []
        for grant in plan.grants:
            self._tables[grant.sequence][grant.first :] = grant.pages
        size = config.page_tokens
        used: dict[int, frozenset[int]] = {}
        for piece in plan.slices:
            table = self._tables[piece.sequence]
            assert piece.end <= len(table) * size, "a slice beyond its pages"
            written = set(table[piece.begin // size : (piece.end - 1) // size + 1])
            for flight in [*self._used.values(), used]:
                for other, pages in flight.items():
                    assert other == piece.sequence or not written & pages, "a page under a running step is written"
            used[piece.sequence] = frozenset(table)
        self._used[plan.lane, plan.step] = used
        self.flights[plan.lane].append(plan)
