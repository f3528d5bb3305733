"""Thousands of short seeded runs: cheap, wide, and each reproducible by its number.

The state machine beside this shrinks what it finds; these runs find more in the same time.
"""

from __future__ import annotations

import os
import random

import pytest
from choices import policies
from core_rig import Rig, request

from kvern.core.events import Aborted, Reprioritise, Woken
from kvern.core.limits import EngineConfig
from kvern.core.views import Policies
from kvern.policies.table import TABLE

RUNS = int(os.environ.get("KVERN_RANDOM_RUNS", "1200"))
BLOCKS = 20


def choose_config(dice: random.Random) -> EngineConfig:
    return EngineConfig(
        pages=dice.choice([6, 9, 16, 40]),
        units=dice.choice([2, 4, 6]),
        max_context=dice.choice([16, 24, 40]),
        page_tokens=4,
        max_running=dice.choice([2, 4, 8]),
        max_step_tokens=dice.choice([3, 8, 16, 40]),
        max_waiting=dice.choice([3, 20]),
        lanes=dice.choice([1, 1, 1, 2]),
        depth=dice.choice([1, 1, 2, 3]),
        prefix_cache=dice.random() < 0.8,
        max_losses=dice.choice([0, 1, 4]),
        lane_retries=dice.choice([0, 1, 2]),
    )


def choose_policies(dice: random.Random) -> Policies:
    names = {family: dice.choice(list(table)) for family, table in TABLE.items()}
    if names["slicing"] == "layered":
        return policies(**{**names, "slicing": ("layered", dice.choice([1, 2, 8]))})
    return policies(**names)


def arrive(it: Rig, dice: random.Random) -> None:
    key = len(it.requests) + 1
    base = dice.choice([0, 0, key])
    length = dice.randrange(1, it.core.config.max_context + 2)
    stops = tuple(dice.sample(range(50), dice.choice([0, 3, 10])))
    more = {"tenant": dice.choice("ab"), "weight": dice.choice([1.0, 3.0])}
    deadline = dice.choice([None, it.now + dice.random() * 5])
    prompt = tuple((base * 7 + i * 3) % 50 for i in range(length))
    it.arrive(request(key, prompt, dice.randrange(1, 14), stops=stops, deadline_s=deadline, **more))


def complete(it: Rig, dice: random.Random) -> None:
    lanes = [lane for lane, plans in enumerate(it.flights) if plans]
    if not lanes:
        return
    lane, kind = dice.choice(lanes), dice.random()
    if kind < 0.05:
        it.fail(lane, applied=dice.random() < 0.5)
    elif kind < 0.1:
        inside = [piece.sequence for piece in it.flights[lane][0].slices]
        it.step(lane, faulty=frozenset(inside[-1:]))
    elif kind < 0.5:
        it.step(lane, stop_at=lambda piece: dice.randrange(it.core.config.units + 1))
    else:
        it.step(lane)


def run(seed: int) -> None:
    dice = random.Random(seed)
    it = Rig(choose_config(dice), choose_policies(dice))
    for _ in range(dice.choice([20, 80, 150])):
        it.now += dice.random()
        kind, known = dice.random(), len(it.requests)
        if kind < 0.25:
            arrive(it, dice)
        elif kind < 0.32 and known:
            it.handle(Aborted(dice.randrange(1, known + 1), "left"))
        elif kind < 0.34 and known:
            it.handle(Reprioritise(dice.randrange(1, known + 1), dice.random() * 4 - 2))
        elif kind < 0.36:
            it.handle(Woken("plan"))
        else:
            complete(it, dice)
    it.drain()
    it.check_done()


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_law_holds_in_every_run(block: int) -> None:
    for seed in range(block, RUNS, BLOCKS):
        try:
            run(seed)
        except Exception as error:
            raise AssertionError(f"run {seed} broke a law") from error
