"""A KV format with a tail in a running engine: equal tokens whatever happens, no shared pages, its memory planned."""

from __future__ import annotations

import asyncio

import pytest
import tiny_models
from small_engine import collect
from tiny_engine import prompt_of, sampled, tiny_engine

from kvern.assembly.device_options import DeviceOptions
from kvern.assembly.memory import MemoryLimits, memory_needs, plan_memory
from kvern.assembly.model import make_device, open_model
from kvern.core.errors import ConfigError, InvariantBroken
from kvern.core.plan import Plan, SequenceStart
from kvern.core.request import Sampling
from kvern.runtime.running_batch import RunningBatch

pytest.importorskip("kvern._native", reason="the native library is not built")
LENGTHS = [5, 64, 150, 129, 60, 190, 63]


def run(coroutine):
    async def bounded():
        async with asyncio.timeout(200):
            return await coroutine

    return asyncio.run(bounded())


async def generated(count: int = 80, **options: object) -> list[list[int]]:
    async with tiny_engine(kv_format="kv4", **options) as client:
        requests = [sampled(n, prompt_of(n, length), count) for n, length in enumerate(LENGTHS)]
        return [tokens for tokens, _ in await asyncio.gather(*(collect(client, request) for request in requests))]


def test_equal_tokens_by_plans_of_other_shapes_and_under_preemption() -> None:
    undisturbed = run(generated())
    for options in (
        {"max_step_tokens": 17, "max_running": 3},
        {"policies": {"slicing": "layered"}, "threads": 1},
        {"depth": 2, "lanes": 2},
        {"pages": 12, "policies": {"admission": "next_slice_fits"}},
    ):
        assert run(generated(**options)) == undisturbed, options


def test_pages_are_not_shared_and_the_plan_says_why() -> None:
    async def check(kv_format: str) -> tuple[str, int]:
        async with tiny_engine(kv_format=kv_format) as client:
            await collect(client, sampled(1, prompt_of(5, 190)))
            _, deltas = await collect(client, sampled(2, prompt_of(5, 190)))
            return client.memory_plan, deltas[0].cached_tokens

    plan, cached = run(check("kv4"))
    assert cached == 0
    assert "prefix cache off: KV format kv4 keeps each sequence's newest tokens outside the pages" in plan
    assert "KV tails" in plan
    plan, cached = run(check("kv4-hadamard"))
    assert cached == 128
    assert "prefix cache off" not in plan
    assert "KV tails" not in plan


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
@pytest.mark.parametrize("kv_format", ["kv4", "kv4-hadamard", "kv4-token", "kv8/kv4-token", "kv4/kv8"])
def test_the_plan_knows_what_pages_and_tails_take(family: str, kv_format: str, tmp_path) -> None:
    model = open_model(tiny_models.write_gguf(tmp_path / "m.gguf", family, "Q8_0", head_dim=80))
    options = DeviceOptions(kv_format=kv_format, max_rows=96, threads=2, sequences=5)
    made = plan_memory(model, options, MemoryLimits(max_context=1024, max_running=5, budget=1 << 30))
    device = make_device(model, options)
    assert device.page_bytes == made.needs.page
    assert device.tail_slots == (5 if kv_format.startswith("kv4/") or kv_format == "kv4" else 0)
    assert bool(made.needs.tails) == bool(device.tail_slots)
    pages = device.page_bytes * device.pages
    assert device.resident_bytes() - pages <= made.needs.weights + made.needs.scratch + made.needs.tails
    without = memory_needs(model, DeviceOptions(max_rows=96, threads=2), MemoryLimits(1024, 5))
    assert made.needs.page < 0.55 * without.page


def test_a_slot_for_each_sequence_and_no_more() -> None:
    batch = RunningBatch(context=64, hidden_size=4, units=2, slots=2, tail_slots=3)
    start = [SequenceStart(n, (1, 2), 2, Sampling(max_tokens=4)) for n in range(5)]
    batch.apply(Plan(step=0, lane=0, slices=(), starts=tuple(start[:3])))
    assert sorted(batch.slot_of.values()) == [0, 1, 2]
    with pytest.raises(InvariantBroken, match="3 sequences"):
        batch.apply(Plan(step=1, lane=0, slices=(), starts=(start[3],)))
    batch.apply(Plan(step=2, lane=0, slices=(), ends=(1,), starts=(start[4],)))
    assert batch.slot_of[4] == 1


def test_formats_that_do_not_go_together_are_refused_at_the_start() -> None:
    for name in ("kv8/kv4", "kv4-hadamard/f32", "kv9"):
        with pytest.raises(ConfigError, match="KV format"):
            DeviceOptions(kv_format=name)
