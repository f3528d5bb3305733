"""Runs plans on a device: one thread per lane, plans of a lane in order of submission.

Lanes of one device share it and its running batch under one lock, held for a whole plan: a lane thread is worker 0
of the native thread pool while its step runs.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvern.core.events import LaneFailed, Stepped
from kvern.core.plan import Plan, Slice
from kvern.runtime.device import Device
from kvern.runtime.plan_run import PlanRun
from kvern.runtime.running_batch import RunningBatch
from kvern.runtime.sampler import Sampler

LOGIT_BYTES = 64 << 20  # of one device call for prompt log-probabilities; a longer slice runs in several calls


@dataclass(slots=True)
class _Queued:
    plan: Plan
    stop: NDArray[np.uint8]


@dataclass(slots=True)
class _Lane:
    plans: deque[_Queued] = field(default_factory=deque)  # waiting and running; the running one is first
    wanted: threading.Condition = field(default_factory=threading.Condition)
    closing: bool = False


class LaneExecutor:
    """An ``Executor`` over one device.

    ``context`` is the largest prompt plus output in tokens; ``wake`` is called, from a lane thread, after each
    completion (a driver passes what ends its poll).
    """

    def __init__(
        self,
        device: Device,
        sampler: Sampler,
        *,
        context: int,
        lanes: int = 1,
        wake: Callable[[], None] | None = None,
    ) -> None:
        self._device, self._sampler = device, sampler
        self._batch = RunningBatch(
            context=context, hidden_size=device.hidden_size, units=device.units, tail_slots=device.tail_slots
        )
        self._device_lock = threading.Lock()
        self._done: deque[Stepped | LaneFailed] = deque()
        self._wake = wake or (lambda: None)
        self._logit_rows = max(1, LOGIT_BYTES // (4 * device.vocab_size))
        self._never = np.zeros(1, np.uint8)  # parts of one slice run all or none
        self.python_seconds = 0.0  # spent in plans outside the device, since start
        self.device_seconds = 0.0  # spent in device calls, since start
        self._lanes = [_Lane() for _ in range(lanes)]
        self._threads = [
            threading.Thread(target=self._serve, args=(lane,), name=f"kvern-lane-{number}", daemon=True)
            for number, lane in enumerate(self._lanes)
        ]
        for thread in self._threads:
            thread.start()

    # -- called by the driver -----------------------------------------------------------------------------------

    def submit(self, plan: Plan) -> None:
        """Queue a plan on its lane; returns at once."""
        lane = self._lanes[plan.lane]
        with lane.wanted:
            lane.plans.append(_Queued(plan, np.zeros(1, np.uint8)))
            lane.wanted.notify()

    def interrupt(self, lane: int, step: int) -> None:
        """Ask an interruptible plan, running or queued, to stop at its next unit boundary; other ids are ignored."""
        target = self._lanes[lane]
        with target.wanted:
            for queued in target.plans:
                if queued.plan.step == step and queued.plan.interruptible:
                    queued.stop[0] = 1

    def completions(self) -> list[Stepped | LaneFailed]:
        """Take what finished since the last call, in order of completion; never blocks."""
        finished = []
        while self._done:
            finished.append(self._done.popleft())
        return finished

    def close(self) -> None:
        """Drop queued plans, finish what runs, then end the lane threads."""
        for lane in self._lanes:
            with lane.wanted:
                lane.closing = True
                lane.wanted.notify()
        for thread in self._threads:
            thread.join()

    # -- the lane threads ---------------------------------------------------------------------------------------

    def _serve(self, lane: _Lane) -> None:
        self._device.adopt_thread()
        while True:
            with lane.wanted:
                while not lane.plans and not lane.closing:
                    lane.wanted.wait()
                if lane.closing:
                    return
                queued = lane.plans[0]
            with self._device_lock:
                event = self._run(queued)
            with lane.wanted:
                lane.plans.popleft()
            self._done.append(event)
            self._wake()

    def _run(self, queued: _Queued) -> Stepped | LaneFailed:
        plan, began = queued.plan, time.perf_counter()
        try:
            self._batch.apply(plan)
            for copy in plan.copies:
                self._device.copy_page(copy.source, copy.target)
            run = PlanRun(self._device, self._batch, self._sampler, plan)
            for slices, all_logits in self._calls(run.live):
                run.call(slices, self._never if all_logits else queued.stop, all_logits=all_logits)
            report = run.report()
        except Exception as error:  # the lane reports every failure; the control core decides what it means
            return LaneFailed(plan.lane, plan.step, f"{type(error).__name__}: {error}")
        self.device_seconds += report.seconds
        self.python_seconds += time.perf_counter() - began - report.seconds
        return Stepped(report)

    def _calls(self, live: list[Slice]) -> list[tuple[list[Slice], bool]]:
        """Split a plan into device calls: one, unless log-probabilities of prompts need bounded blocks of logits."""
        if not self._batch.sampling.any_prompt_logprobs():
            return [(live, False)] if live else []
        plain, calls = [], []
        for piece in live:
            if not self._wants_prompt(piece):
                plain.append(piece)
                continue
            for begin in range(piece.begin, piece.end, self._logit_rows):
                end = min(begin + self._logit_rows, piece.end)
                part = Slice(
                    piece.sequence,
                    begin,
                    end,
                    piece.unit_begin,
                    piece.unit_end,
                    piece.emits and end == piece.end,
                )
                calls.append(([part], True))
        return [*calls, (plain, False)] if plain else calls

    def _wants_prompt(self, piece: Slice) -> bool:
        slot = self._batch.slot_of[piece.sequence]
        reads = piece.begin < self._batch.prompt[slot] - 1 or self._batch.prompt[slot] == 1
        wanted = self._batch.sampling.rows["prompt_logprobs"][slot] >= 0
        return bool(wanted and piece.unit_end == self._device.units and reads)
