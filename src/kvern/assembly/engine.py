"""An engine from a model and options: what runs in the engine's process, or in a thread of the caller's.

``python -m kvern.assembly.engine SOCKET IN_FLIGHT OPTIONS`` is the engine process: two inherited descriptors and
``EngineOptions`` as JSON. It is started by ``engine.launch``, never by hand.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from kvern.assembly.device_options import DeviceOptions
from kvern.assembly.load_progress import watched
from kvern.assembly.memory import MemoryLimits, plan_memory
from kvern.assembly.model import LoadedModel, make_device, open_model
from kvern.assembly.samplers import make_sampler
from kvern.core.errors import ConfigError
from kvern.core.limits import EngineConfig
from kvern.core.ports import EngineInfo
from kvern.core.views import Policies
from kvern.engine.channel import Wake
from kvern.engine.core import EngineCore
from kvern.engine.driver import BuiltEngine
from kvern.engine.event_log_files import EventLogFiles
from kvern.engine.process import main
from kvern.engine.record import Recorder
from kvern.formats import kv as kv_formats
from kvern.policies.table import TABLE
from kvern.runtime.device import Device, Resizable
from kvern.runtime.executor import LaneExecutor
from kvern.runtime.memory_plan import resident_bytes


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Everything an engine is made from. ``model`` is a path; None lets kvern choose."""

    model: str
    name: str = ""  # what the model is called; by default the file's name
    weight_format: str = "file"
    activation_format: str = "auto"
    weight_budget: int | None = None  # bytes, of a model whose weights come in layers (bitstack)
    kv_format: str = "bf16"
    backend: str = "cpu"
    threads: int | None = None
    pin_threads: bool = True
    max_context: int | None = None  # tokens, prompt and output together
    memory: int | None = None  # bytes of the engine process, load included
    max_running: int = 64
    max_step_tokens: int = 512
    max_waiting: int = 1024
    lanes: int = 1
    depth: int = 1
    pages: int | None = None  # of KV; None: what the memory plan gives
    prefix_cache: bool = True
    policies: dict[str, str] = {}  # family to name; the others are the defaults
    event_log: str | None = None  # folder; None: no log
    event_log_bytes: int = 256 << 20

    @classmethod
    def of(cls, **options: Any) -> EngineOptions:
        """From keyword arguments. Raises ConfigError for one that does not exist or has another type."""
        unknown = sorted(set(options) - set(cls.__struct_fields__))
        if unknown:
            known = ", ".join(name for name in cls.__struct_fields__)
            raise ConfigError(f"there is no option {unknown[0]!r}; the options are {known}")
        try:
            return msgspec.convert({k: v for k, v in options.items() if v is not None}, cls)
        except msgspec.ValidationError as error:
            raise ConfigError(f"option {error}") from error

    def as_json(self) -> str:
        return msgspec.json.encode(self).decode()


def choose_policies(names: dict[str, str]) -> Policies:
    """The default of each family, but for those named. Raises ConfigError for a name that is not there."""
    for family in names:
        if family not in TABLE:
            raise ConfigError(f"there is no policy family {family!r}; the families are {', '.join(TABLE)}")
    made = {}
    for family, table in TABLE.items():
        name = names.get(family, next(iter(table)))
        if name not in table:
            raise ConfigError(f"there is no {family} policy {name!r}; there are {', '.join(table)}")
        module, function = table[name].split(":")
        made[family] = getattr(import_module(module), function)()
    return Policies(**made)


def build_engine(options: EngineOptions, wake: Wake, progress: Callable[[int, int], None]) -> BuiltEngine:
    """Load the model and put an engine together. Raises ConfigError, PlanError, ModelFileError."""
    with closing(open_model(options.model)) as model:
        context = min(options.max_context or model.spec.max_context, model.spec.max_context)
        threads = options.threads or len(os.sched_getaffinity(0))
        chosen = choose_policies(options.policies)
        wanted = DeviceOptions(
            backend=options.backend,
            weight_format=options.weight_format,
            activation_format=options.activation_format,
            kv_format=options.kv_format,
            threads=threads,
            pin_threads=options.pin_threads,
            max_rows=max(options.max_step_tokens, options.max_running),
            weight_budget=options.weight_budget,
            # Plans in flight may still hold sequences whose seats are taken by others already.
            sequences=options.max_running * options.lanes * options.depth,
        )
        limits = MemoryLimits(context, options.max_running, options.memory, options.pages)
        plan = plan_memory(model, wanted, limits)
        unshared = kv_formats.get(options.kv_format).share_reason
        device = make_device(watched(model, progress), replace(wanted, pages=plan.pages))
        config = EngineConfig(
            pages=device.pages,
            units=device.units,
            max_context=context,
            max_running=options.max_running,
            max_step_tokens=options.max_step_tokens,
            max_waiting=options.max_waiting,
            lanes=options.lanes,
            depth=options.depth,
            prefix_cache=options.prefix_cache and not unshared,
            cache_domain=f"1:{options.kv_format}".encode(),
        )
        info = _info(options, model, device, config, threads)
    executor = LaneExecutor(
        device, make_sampler(options.backend, device), context=context, lanes=options.lanes, wake=wake.set
    )
    recorder = None if options.event_log is None else Recorder(_log_files(options), config, chosen)
    core = EngineCore(config, chosen, cache_key=secrets.token_bytes(32))
    told = plan.table() + (f"\nprefix cache off: {unshared}" if options.prefix_cache and unshared else "")
    resize = device.set_weight_budget if isinstance(device, Resizable) else None
    return BuiltEngine(core, executor, info, told, recorder, resident_bytes, resize)


def _isa(backend: str) -> str:
    """What the kernels run on: an instruction set, or "numpy"."""
    if backend == "reference":
        return "numpy"
    return str(import_module("kvern._native").isa())


def _log_files(options: EngineOptions) -> EventLogFiles:
    run = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{secrets.token_hex(3)}"
    return EventLogFiles(Path(options.event_log or "."), run, total_bytes=options.event_log_bytes)


def _info(
    options: EngineOptions, model: LoadedModel, device: Device, config: EngineConfig, threads: int
) -> EngineInfo:
    return EngineInfo(
        model=options.name or model.path.stem,
        vocab_size=device.vocab_size,
        max_context=config.max_sequence,
        page_tokens=config.page_tokens,
        pages_total=config.pages,
        max_running=config.max_running,
        weight_format=model.weight_formats[0] if options.weight_format == "file" else options.weight_format,
        kv_format=options.kv_format,
        isa=_isa(options.backend),
        threads=threads,
        deterministic=options.backend == "cpu",  # NumPy's sums depend on the shape of a batch
        resident_bytes=device.resident_bytes(),
    )


if __name__ == "__main__":
    _options = msgspec.json.decode(sys.argv[3], type=EngineOptions)
    main(partial(build_engine, _options), int(sys.argv[1]), int(sys.argv[2]))
