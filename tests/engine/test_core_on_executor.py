"""The control core on the real executor: cursors, spans, lanes and depth in use, and no token changed by them."""

from __future__ import annotations

import importlib
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest
from page_device import PageDevice

from kvern.core.events import Aborted, Arrived, Emit, Event, Execute, Interrupt, LaneFailed
from kvern.core.limits import EngineConfig
from kvern.core.plan import Plan
from kvern.core.request import Request, Sampling
from kvern.core.views import Policies
from kvern.engine.core import EngineCore
from kvern.kernels.reference.sample import ReferenceSampler
from kvern.policies.table import TABLE
from kvern.runtime.executor import LaneExecutor
from kvern.runtime.sampler import Sampler

WAIT_S = 60.0


def make(family: str, choice: Any) -> Any:
    name, *arguments = choice if isinstance(choice, tuple) else (choice,)
    module, function = TABLE[family][name].split(":")
    return getattr(importlib.import_module(module), function)(*arguments)


def policies(names: dict[str, Any]) -> Policies:
    return Policies(**{family: make(family, names.get(family, next(iter(table)))) for family, table in TABLE.items()})


class Bench:
    """One core, one executor, driven from the test's thread."""

    def __init__(self, device: PageDevice, names: dict[str, Any], **limits: Any) -> None:
        base: dict[str, Any] = {"pages": device.pages, "units": device.units, "max_context": 400}
        self.config = EngineConfig(**{**base, **limits})
        self.core = EngineCore(self.config, policies(names))
        self._woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.executor = LaneExecutor(
            device,
            Sampler(ReferenceSampler()),
            context=400,
            lanes=self.config.lanes,
            wake=lambda: self._woken.put(None),
        )
        self.plans: list[Plan] = []
        self.out: dict[int, list[int]] = {}
        self.finish: dict[int, str] = {}
        self.cached: dict[int, int] = {}
        self.running = 0
        self.failures = 0

    def handle(self, event: Event) -> None:
        for command in self.core.handle(event, 0.0):
            if isinstance(command, Execute):
                self.running += 1
                self.plans.append(command.plan)
                self.executor.submit(command.plan)
            elif isinstance(command, Interrupt):
                self.executor.interrupt(command.lane, command.step)
            elif isinstance(command, Emit):
                for delta in command.deltas:
                    self.out.setdefault(delta.request, []).extend(delta.tokens)
                    self.cached.setdefault(delta.request, delta.cached_tokens)
                    if delta.finish:
                        self.finish[delta.request] = delta.finish
        self.core.audit()

    def turn(self) -> None:
        """Wait for a completion and handle all there are."""
        self._woken.get(timeout=WAIT_S)
        for event in self.executor.completions():
            self.running -= 1
            self.failures += isinstance(event, LaneFailed)
            self.handle(event)

    def drain(self) -> None:
        while self.running:
            self.turn()
        stats = self.core.stats()
        assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)


@pytest.fixture
def bench():
    made: list[Bench] = []

    def open_bench(device: PageDevice | None = None, names: dict[str, Any] | None = None, **limits: Any) -> Bench:
        made.append(Bench(device or PageDevice(), names or {}, **limits))
        return made[-1]

    yield open_bench
    for item in made:
        item.executor.close()


def request(key: int, length: int, tokens: int = 12, base: int = 5, **more: Any) -> Request:
    prompt = tuple((i * 37 + base) % 96 for i in range(length))
    return Request(key, prompt, Sampling(0.0, max_tokens=tokens), **more)


LENGTHS = {1: (150, 5), 2: (3, 8), 3: (64, 5), 4: (200, 5), 5: (129, 40), 6: (1, 1)}


def run_all(it: Bench, count: int = 6) -> dict[int, list[int]]:
    for key in range(1, count + 1):
        it.handle(Arrived(request(key, LENGTHS[key][0], 12 + key, LENGTHS[key][1])))
        if key % 2 == 0 and it.running:
            it.turn()
    it.drain()
    return it.out


@pytest.fixture(scope="module")
def alone() -> dict[int, list[int]]:
    """Each request by itself on a fresh device."""
    out = {}
    for key, (length, base) in LENGTHS.items():
        it = Bench(PageDevice(), {}, prefix_cache=False)
        it.handle(Arrived(request(key, length, 12 + key, base)))
        it.drain()
        it.executor.close()
        out[key] = it.out[key]
    return out


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "batched": ({}, {}),
    "chunks of 7": ({"slicing": ("chunked", 7)}, {}),
    "small steps": ({}, {"max_step_tokens": 65}),
    "layer groups": ({"slicing": ("layered", 50)}, {"max_running": 8}),
    "depth 2": ({}, {"depth": 2}),
    "depth 3, layer groups": ({"slicing": ("layered", 50)}, {"depth": 3, "max_running": 8}),
    "two lanes": ({}, {"lanes": 2, "max_step_tokens": 100}),
    "tight memory": ({"admission": "next_slice_fits"}, {"pages": 7}),
    "tight memory, depth 2": ({"admission": "next_slice_fits"}, {"pages": 7, "depth": 2}),
    "two seats": ({}, {"max_running": 2}),
    "no cache": ({}, {"prefix_cache": False}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_changes_a_token(name: str, bench: Callable[..., Bench], alone: dict[int, list[int]]) -> None:
    names, limits = SETTINGS[name]
    it = bench(None, names, **limits)
    assert run_all(it) == alone
    assert set(it.finish.values()) == {"length"}
    assert it.failures == 0
    if "tight" in name:
        assert it.core.stats().preemptions > 0
    if "layer" in name:
        assert any(piece.unit_begin for plan in it.plans for piece in plan.slices)


def test_an_operator_interrupt_and_its_resumption(bench: Callable[..., Bench], alone: dict[int, list[int]]) -> None:
    reached, go = threading.Event(), threading.Event()

    def on_unit(unit: int) -> None:
        if unit == 3 and not reached.is_set():
            reached.set()
            assert go.wait(WAIT_S)

    it = bench(PageDevice(on_unit=on_unit), {"composing": "deadline_first", "preemption": "urgent_first"})
    it.handle(Arrived(request(4, 200, 16)))
    assert reached.wait(WAIT_S)
    it.handle(Arrived(request(2, 3, 14, base=8, deadline_s=1.0)))
    go.set()
    it.turn()
    urgent, resumed = it.plans[1].slices
    assert (urgent.sequence, urgent.unit_begin) == (2, 0)
    assert (resumed.sequence, resumed.begin, resumed.end, resumed.unit_begin) == (4, 0, 200, 3)
    it.drain()
    assert it.out == {2: alone[2], 4: alone[4]}


@pytest.mark.parametrize("depth", [1, 2])
def test_a_device_error_costs_nobody_a_token(
    depth: int, bench: Callable[..., Bench], alone: dict[int, list[int]]
) -> None:
    units = [0]

    def on_unit(unit: int) -> None:
        units[0] += unit == 0
        if unit == 2 and units[0] in (3, 8, 9):
            raise RuntimeError("made to fail")

    it = bench(PageDevice(on_unit=on_unit), depth=depth, lane_retries=2)
    assert run_all(it) == alone
    assert it.failures >= 3
    assert set(it.finish.values()) == {"length"}


def test_cancelling_everything_everywhere_frees_everything(bench: Callable[..., Bench]) -> None:
    it = bench(None, {"slicing": ("layered", 40)}, depth=2, max_running=4)
    for key in range(1, 7):
        it.handle(Arrived(request(key, *LENGTHS[key][:1], 30)))
    it.turn()
    for key in range(1, 7):
        it.handle(Aborted(key, "left"))
        if key % 2 and it.running:
            it.turn()
    it.drain()
    assert set(it.finish.values()) == {"abort"}


def test_a_repeated_prompt_is_found_in_the_cache(bench: Callable[..., Bench], alone: dict[int, list[int]]) -> None:
    it = bench()
    it.handle(Arrived(request(4, 200, 16)))
    it.drain()
    it.handle(Arrived(request(1, 150, 13)))
    it.drain()
    assert it.cached == {4: 0, 1: 128}
    assert it.out == {4: alone[4], 1: alone[1]}
