"""``python -m page_engine SOCKET IN_FLIGHT OPTIONS``: an engine process over a ``PageDevice``, to be killed.

OPTIONS is JSON: ``slow`` makes each step take so many seconds; ``poison`` is a token that kills the process when a
sequence ends with it; ``max_waiting`` and ``max_running`` are EngineConfig's.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

import small_engine
from page_device import PageDevice

from kvern.engine.process import main
from kvern.runtime.device import StepBatch, StepResult


class Dangerous(PageDevice):
    slow = 0.0
    poison = -1

    def step(self, batch: StepBatch) -> StepResult:
        if (batch.tokens == self.poison).any():
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait(self.slow)
        return super().step(batch)


if __name__ == "__main__":
    options = json.loads(sys.argv[3])
    Dangerous.slow, Dangerous.poison = options.get("slow", 0.0), options.get("poison", -1)
    limits = {name: options[name] for name in ("max_waiting", "max_running") if name in options}
    main(small_engine.builder(Dangerous, **limits), int(sys.argv[1]), int(sys.argv[2]))
