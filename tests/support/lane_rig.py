"""Drives a ``LaneExecutor`` by hand: builds plans, waits for what comes back."""

from __future__ import annotations

import queue
from collections.abc import Sequence

from kvern.core.events import LaneFailed, Stepped
from kvern.core.plan import PageGrant, Plan, SequenceStart, Slice, StepReport
from kvern.core.request import Sampling
from kvern.runtime.device import Device
from kvern.runtime.executor import LaneExecutor
from kvern.runtime.sampler import SampleKernel, Sampler

GREEDY = Sampling(temperature=0.0, max_tokens=1000)
WAIT_S = 60.0


class LaneRig:
    def __init__(self, device: Device, kernel: SampleKernel, *, context: int = 512, lanes: int = 1) -> None:
        self.device = device
        self._arrived: queue.SimpleQueue[None] = queue.SimpleQueue()
        wake = lambda: self._arrived.put(None)  # noqa: E731
        self.executor = LaneExecutor(device, Sampler(kernel), context=context, lanes=lanes, wake=wake)
        self._ready: list[Stepped | LaneFailed] = []
        self._steps = [0] * lanes

    def __enter__(self) -> LaneRig:
        return self

    def __exit__(self, *error: object) -> None:
        self.executor.close()

    def submit(self, *slices: Slice, lane: int = 0, **rest: object) -> int:
        """Queue a plan of these slices; its step id."""
        self._steps[lane] += 1
        self.executor.submit(Plan(self._steps[lane], lane, slices, **rest))  # type: ignore[arg-type]
        return self._steps[lane]

    def next(self) -> Stepped | LaneFailed:
        while not self._ready:
            self._arrived.get(timeout=WAIT_S)
            self._ready += self.executor.completions()
        return self._ready.pop(0)

    def report(self) -> StepReport:
        event = self.next()
        assert isinstance(event, Stepped), event
        return event.report

    def run(self, *slices: Slice, **rest: object) -> StepReport:
        self.submit(*slices, **rest)
        return self.report()

    def prefill(self, sequence: int, tokens: Sequence[int], pages: Sequence[int], sampling: Sampling = GREEDY) -> int:
        """Start a sequence and run its prompt in one slice; the first token."""
        report = self.run(
            whole(self.device, sequence, 0, len(tokens), emits=True),
            starts=(SequenceStart(sequence, tuple(tokens), len(tokens), sampling),),
            grants=(PageGrant(sequence, 0, tuple(pages)),),
        )
        return report.tokens[0]

    def decode(self, sequence: int, begin: int, count: int) -> list[int]:
        """``count`` tokens, one plan each."""
        return [
            self.run(whole(self.device, sequence, at, at + 1, emits=True)).tokens[0]
            for at in range(begin, begin + count)
        ]


def whole(device: Device, sequence: int, begin: int, end: int, *, emits: bool = False) -> Slice:
    """Tokens ``[begin, end)`` through all units."""
    return Slice(sequence, begin, end, 0, device.units, emits)


def started(
    sequence: int, tokens: Sequence[int], pages: Sequence[int], sampling: Sampling = GREEDY
) -> dict[str, object]:
    """The parts of a plan that bring a sequence in."""
    return {
        "starts": (SequenceStart(sequence, tuple(tokens), len(tokens), sampling),),
        "grants": (PageGrant(sequence, 0, tuple(pages)),),
    }
