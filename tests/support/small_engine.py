"""Engines for tests of what is around the model: the real core, executor and driver over a ``PageDevice``."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from page_device import PageDevice

from kvern.core.events import Delta
from kvern.core.limits import EngineConfig
from kvern.core.ports import EngineClient, EngineInfo
from kvern.core.request import Request, Sampling
from kvern.core.views import Policies
from kvern.engine.channel import Wake
from kvern.engine.core import EngineCore
from kvern.engine.driver import BuiltEngine
from kvern.engine.record import Recorder, Sink
from kvern.kernels.reference.sample import ReferenceSampler
from kvern.policies.table import TABLE
from kvern.runtime.executor import LaneExecutor
from kvern.runtime.sampler import Sampler


def policies(**names: str) -> Policies:
    """The defaults, but for those named."""
    made = {}
    for family, table in TABLE.items():
        module, function = table[names.get(family, next(iter(table)))].split(":")
        made[family] = getattr(importlib.import_module(module), function)()
    return Policies(**made)


def builder(
    device: Callable[[], PageDevice] = PageDevice,
    *,
    sink: Sink | None = None,
    names: dict[str, str] | None = None,
    **limits: object,
) -> Callable[..., BuiltEngine]:
    """A ``Build`` for ``run_engine``; ``limits`` are fields of EngineConfig."""

    def build(wake: Wake, progress: Callable[[int, int], None]) -> BuiltEngine:
        made = device()
        config = EngineConfig(**{"pages": made.pages, "units": made.units, "max_context": 1024, **limits})
        chosen = policies(**(names or {}))
        progress(1, 2)
        progress(2, 2)
        return BuiltEngine(
            core=EngineCore(config, chosen),
            executor=LaneExecutor(
                made, Sampler(ReferenceSampler()), context=config.max_context, lanes=config.lanes, wake=wake.set
            ),
            info=engine_info(made, config),
            memory_plan="a plan",
            recorder=None if sink is None else Recorder(sink, config, chosen),
            resident_bytes=made.resident_bytes,
        )

    return build


def engine_info(device: PageDevice, config: EngineConfig) -> EngineInfo:
    return EngineInfo(
        model="pages",
        vocab_size=device.vocab_size,
        max_context=config.max_context,
        page_tokens=config.page_tokens,
        pages_total=config.pages,
        max_running=config.max_running,
        weight_format="none",
        kv_format="none",
        isa="none",
        threads=1,
        deterministic=True,
        resident_bytes=device.resident_bytes(),
    )


def ask(number: int, prompt: list[int], count: int = 10, **sampling: object) -> Request:
    chosen = {"temperature": 0.0, "max_tokens": count, **sampling}
    return Request(number, tuple(prompt), Sampling(**chosen))  # type: ignore[arg-type]


async def collect(client: EngineClient, request: Request) -> tuple[list[int], list[Delta]]:
    """All tokens of a request, and its deltas."""
    deltas = [delta async for delta in client.stream(request)]
    return [token for delta in deltas for token in delta.tokens], deltas
