"""``kvern bench serve`` (open loop on any OpenAI-compatible server) and ``kvern bench offline`` (in process)."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from kvern.cli.model_flags import add_model_flags, engine_options, model_name
from kvern.config.schema import parse_count, parse_number
from kvern.core.errors import KvernError

WITHHELD = 3  # exit status when there is no throughput that may be quoted


def _add_shape(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-prompts", type=parse_count, default=64, metavar="N", help="requests (default: 64)")
    parser.add_argument("--input-len", type=parse_count, default=128, metavar="TOKENS", help="default: 128")
    parser.add_argument("--output-len", type=parse_count, default=128, metavar="TOKENS", help="default: 128")
    parser.add_argument(
        "--shared-prefix-len", type=int, default=0, metavar="TOKENS", help="same in all prompts; default: 0"
    )
    parser.add_argument("--seed", type=int, default=0, help="of arrivals, and of prompts with --no-salt (default: 0)")
    parser.add_argument(
        "--salt", action=argparse.BooleanOptionalAction, default=True,
        help="prompts that no earlier run has sent, so that its cache cannot help (default: on)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(required=True, metavar="serve|offline")
    serve = kinds.add_parser("serve", help="open-loop load on an OpenAI-compatible server", allow_abbrev=False)
    serve.add_argument("--url", default="http://127.0.0.1:8000", help="default: http://127.0.0.1:8000")
    serve.add_argument("--model", help="default: the first that the server lists")
    serve.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY"), help="default: OPENAI_API_KEY")
    serve.add_argument(
        "--request-rate", type=parse_number, default=1.0, metavar="PER_S",
        help="Poisson arrivals per second; 0 sends all at once (default: 1)",
    )  # fmt: skip
    serve.add_argument(
        "--prompts", type=Path, metavar="FILE", help="JSON lines with prompt or messages, instead of random"
    )
    serve.add_argument(
        "--vocab-size", type=parse_count, default=32000, help="random token ids stay below it (default: 32000)"
    )
    serve.add_argument(
        "--timeout", type=parse_number, default=600.0, metavar="SECONDS", help="of a request; default: 600"
    )
    _add_shape(serve)
    serve.set_defaults(bench=serve_bench)
    offline = kinds.add_parser("offline", help="a batch through the engine in this process", allow_abbrev=False)
    _add_shape(offline)
    add_model_flags(offline)
    offline.set_defaults(bench=offline_bench)


def serve_bench(arguments: argparse.Namespace) -> int:
    from kvern.bench.load import Shape, file_calls, random_calls
    from kvern.bench.serving import run as run_load
    from kvern.bench.stream import BenchError, Target
    from kvern.bench.summary import table

    if arguments.prompts is not None:
        calls = file_calls(arguments.prompts, arguments.request_rate, arguments.seed, salted=arguments.salt)
    else:
        shape = Shape(arguments.input_len, arguments.output_len, arguments.shared_prefix_len, arguments.vocab_size)
        rate, count = arguments.request_rate, arguments.num_prompts
        calls = random_calls(count, rate, shape, arguments.seed, salted=arguments.salt)
    target = Target(arguments.url, arguments.api_key, arguments.timeout)
    try:
        summary = asyncio.run(run_load(target, calls, arguments.model))
    except BenchError as error:
        raise KvernError(str(error)) from error
    print(json.dumps(summary.as_json()) if arguments.json else table(summary))
    if summary.failed:
        return 1
    return 0 if summary.withheld is None else WITHHELD


def offline_bench(arguments: argparse.Namespace) -> int:
    from kvern.bench.offline import Batch, batch, salted_prompts, table
    from kvern.llm import AsyncLLM

    async def measure() -> Batch:
        seed = None if arguments.salt else arguments.seed
        async with AsyncLLM(model_name(arguments), **engine_options(arguments)) as llm:
            # One request first: a first step's page faults and thread starts are not the engine's speed.
            await batch(llm.client, salted_prompts(llm.client, 1, arguments.input_len), 2)
            prompts = salted_prompts(
                llm.client, arguments.num_prompts, arguments.input_len, shared=arguments.shared_prefix_len, seed=seed
            )
            return await batch(llm.client, prompts, arguments.output_len)

    result = asyncio.run(measure())
    print(json.dumps(result.as_json()) if arguments.json else table(result))
    return 0


def run(arguments: argparse.Namespace) -> int:
    done: Any = arguments.bench(arguments)
    sys.stdout.flush()
    return int(done)
