"""kvern on the workload, its engine a process of its own as in `kvern serve`.

    python kvern_worker.py MODEL REPEATS SEED [OPTION=VALUE ...]

Options are fields of the engine's configuration, for example kv_format=kv8 weight_format=w8a8.
"""

from __future__ import annotations

import asyncio
import sys

from workload import Prompts, run

from kvern.bench.offline import batch
from kvern.llm import AsyncLLM


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[4:])
    limits = {"threads": 2, "max_running": 64, "max_context": 4096}
    with asyncio.Runner() as loop:
        llm = AsyncLLM(sys.argv[1], embed=False, **(limits | options))
        loop.run(llm.start())

        def generate(prompts: Prompts, output: int) -> None:
            loop.run(batch(llm.client, prompts, output))

        try:
            run(generate, int(sys.argv[2]), int(sys.argv[3]))
        finally:
            loop.run(llm.close())


if __name__ == "__main__":
    main()
