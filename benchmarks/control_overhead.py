"""What share of a step is control and bookkeeping, with many sequences decoding at once.

The whole engine runs in this process: the real core, executor and native device, driven without sockets so that
nothing else is measured. Printed: the median step, the time in the device, the executor's own time (batch arrays,
sampling, report) and the control core's, of decode-only steps.

    python benchmarks/control_overhead.py smollm2 [--sequences 64] [--steps 40] [--threads 2]
"""

from __future__ import annotations

import argparse
import queue
import statistics
import tempfile
import time

from kvern.assembly.engine import EngineOptions, build_engine
from kvern.core.events import Arrived, Execute, LaneFailed
from kvern.core.request import Request, Sampling
from kvern.engine.channel import Wake
from kvern.weights.hub import resolve


class Timer:
    """Seconds spent in a function, call by call."""

    def __init__(self) -> None:
        self.spans: list[float] = []

    def wrap(self, function):
        def timed(*arguments, **named):
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.spans.append(time.perf_counter() - began)

        return timed


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Medians in seconds over decode-only steps."""
    with tempfile.TemporaryDirectory() as folder:
        options = EngineOptions.of(
            model=str(resolve(arguments.model)),
            threads=arguments.threads,
            max_running=arguments.sequences,
            max_context=1024,
            event_log=folder,
        )
        wake = Wake()
        engine = build_engine(options, wake, lambda done, total: None)
        arrived: queue.SimpleQueue[None] = queue.SimpleQueue()
        engine.executor._wake = lambda: arrived.put(None)
        device, sampler = Timer(), Timer()
        engine.executor._device.step = device.wrap(engine.executor._device.step)
        engine.executor._sampler.choose = sampler.wrap(engine.executor._sampler.choose)
        try:
            rows = run(engine, arrived, arguments, device, sampler)
        finally:
            engine.executor.close()
            wake.close()
    kept = rows[len(rows) // 4 :]
    return {name: statistics.median(row[name] for row in kept) for name in kept[0]}


def run(engine, arrived, arguments: argparse.Namespace, device: Timer, sampler: Timer) -> list[dict[str, float]]:
    sampling = Sampling(temperature=arguments.temperature, max_tokens=arguments.steps + 20, seed=1)
    commands = []
    for number in range(arguments.sequences):
        prompt = tuple((number * 7919 + i * 31) % 40000 + 100 for i in range(arguments.prompt))
        commands += engine.core.handle(Arrived(Request(number + 1, prompt, sampling)), time.monotonic())
    rows: list[dict[str, float]] = []
    while commands:
        plans = [command.plan for command in commands if isinstance(command, Execute)]
        if not plans:
            break
        decode_only = all(piece.emits and piece.end - piece.begin == 1 for piece in plans[0].slices)
        full = decode_only and len(plans[0].slices) == arguments.sequences
        before, sampled, began = engine.executor.python_seconds, len(sampler.spans), time.perf_counter()
        for plan in plans:
            engine.executor.submit(plan)
        events = []
        while not events:
            arrived.get()
            events = engine.executor.completions()
        ended = time.perf_counter()
        commands = []
        for event in events:
            assert not isinstance(event, LaneFailed), event
            now = time.monotonic()
            made = engine.core.handle(event, now)
            engine.recorder.note(event, now, made)
            commands += made
        control = time.perf_counter() - ended
        if full:
            own = engine.executor.python_seconds - before
            sampling_s = sum(sampler.spans[sampled:])  # nothing where the device finds the likeliest tokens itself
            rows.append({
                "step": time.perf_counter() - began,
                "device": device.spans[-1],
                "executor": own - sampling_s,
                "sampling": sampling_s,
                "control": control,
            })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="name, file or folder")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.0)
    found = measure(parser.parse_args())
    for name, seconds in found.items():
        print(f"{name:<10} {1e3 * seconds:9.3f} ms  {100 * seconds / found['step']:6.2f} %")
    share = (found["executor"] + found["control"]) / found["step"]
    print(f"control and bookkeeping: {100 * share:.2f} % of a step (sampling is the device's work)")


if __name__ == "__main__":
    main()
