"""Random event sequences against the model device: after every event all laws hold, and everyone gets his tokens."""

from __future__ import annotations

import os

from choices import policies
from core_rig import Rig, request
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kvern.core.events import Aborted, Measured, Reprioritise, Woken
from kvern.core.limits import EngineConfig
from kvern.engine.replay import replay
from kvern.policies.table import TABLE

EXAMPLES = int(os.environ.get("KVERN_EXAMPLES", "250"))

configs = st.builds(
    EngineConfig,
    pages=st.sampled_from([6, 9, 16, 40]),
    units=st.sampled_from([2, 4, 6]),
    max_context=st.sampled_from([16, 24, 40]),
    page_tokens=st.just(4),
    max_running=st.sampled_from([2, 4, 8]),
    max_step_tokens=st.sampled_from([3, 8, 16, 40]),
    max_waiting=st.sampled_from([3, 20]),
    lanes=st.sampled_from([1, 1, 1, 2]),
    depth=st.sampled_from([1, 2, 3]),
    prefix_cache=st.booleans(),
    max_losses=st.sampled_from([0, 1, 4]),
    lane_retries=st.sampled_from([0, 1, 2]),
)
choices = st.fixed_dictionaries({family: st.sampled_from(list(table)) for family, table in TABLE.items()})


class CoreMachine(RuleBasedStateMachine):
    """Arrivals, aborts, steps, interrupts, faults and lane failures in any order."""

    @initialize(config=configs, names=choices, work=st.integers(1, 8))
    def begin(self, config: EngineConfig, names: dict[str, str], work: int) -> None:
        self.names = dict(names)
        if names["slicing"] == "layered":
            self.names["slicing"] = ("layered", work)
        self.rig = Rig(config, policies(**self.names))
        self.count = 0

    @rule(
        base=st.sampled_from([0, 0, 1, 2]),
        length=st.integers(1, 41),
        tokens=st.integers(1, 13),
        stops=st.sets(st.integers(0, 49), max_size=8),
        tenant=st.sampled_from("ab"),
        patience=st.none() | st.floats(0, 5),
        accepted=st.lists(st.integers(0, 49), max_size=2),
        salt=st.sampled_from([b"", b"other"]),
    )
    def arrive(self, base, length, tokens, stops, tenant, patience, accepted, salt) -> None:
        self.count += 1
        prompt = tuple((base * 7 + i * 3) % 50 for i in range(length))
        deadline = None if patience is None else self.rig.now + patience
        accepted = tuple(accepted) if len(accepted) < tokens else ()
        more = {"tenant": tenant, "deadline_s": deadline, "accepted": accepted, "salt": salt}
        self.rig.arrive(request(self.count, prompt, tokens, stops=tuple(sorted(stops)), **more))

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def abort(self, data) -> None:
        self.rig.handle(Aborted(data.draw(st.integers(1, self.count)), "left"))

    @precondition(lambda self: self.count)
    @rule(data=st.data(), rank=st.floats(-2, 2))
    def reprioritise(self, data, rank) -> None:
        self.rig.handle(Reprioritise(data.draw(st.integers(1, self.count)), rank))

    @rule(seconds=st.floats(0, 1))
    def wait(self, seconds) -> None:
        self.rig.now += seconds
        self.rig.handle(Woken("plan"))
        self.rig.handle(Measured("step_s", seconds))

    def lane(self, data) -> int:
        return data.draw(st.sampled_from([lane for lane, plans in enumerate(self.rig.flights) if plans]))

    @precondition(lambda self: any(self.rig.flights))
    @rule(data=st.data(), units=st.none() | st.lists(st.integers(0, 6), min_size=1, max_size=4))
    def step(self, data, units) -> None:
        stop_at = None if units is None else (lambda piece: units[piece.sequence % len(units)])
        self.rig.step(self.lane(data), stop_at=stop_at)

    @precondition(lambda self: any(self.rig.flights))
    @rule(data=st.data())
    def steps(self, data) -> None:
        for _ in range(data.draw(st.integers(1, 6))):
            if any(self.rig.flights):
                self.rig.step(self.lane(data))

    @precondition(lambda self: any(self.rig.flights))
    @rule(data=st.data())
    def fault(self, data) -> None:
        lane = self.lane(data)
        inside = [piece.sequence for piece in self.rig.flights[lane][0].slices]
        self.rig.step(lane, faulty=frozenset(inside[:1]))

    @precondition(lambda self: any(self.rig.flights))
    @rule(data=st.data(), applied=st.booleans())
    def fail(self, data, applied) -> None:
        self.rig.fail(self.lane(data), applied=applied)

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.rig.drain()
        self.rig.check_done()
        assert replay(self.rig.sink.records, policies(**self.names)).difference is None


CoreMachine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
TestCoreMachine = CoreMachine.TestCase
