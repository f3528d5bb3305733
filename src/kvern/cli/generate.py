"""``kvern generate``: continue a prompt and print it as it comes."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvern.cli.model_flags import add_model_flags, engine_options, model_name
from kvern.cli.sampling import add_sampling_flags, given_sampling
from kvern.core.errors import ConfigError, KvernError

if TYPE_CHECKING:
    from kvern.cli.session import Session
    from kvern.llm import RequestOutput
    from kvern.sampling_params import SamplingParams

MAX_TOKENS = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", "-p", metavar="TEXT", help="what to continue")
    prompt.add_argument(
        "--file", "-f", type=Path, metavar="FILE", help="continue this file's text; - is standard input"
    )
    parser.add_argument("--chat", action="store_true", help="the prompt is a user's message: use the chat template")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    add_model_flags(parser)
    add_sampling_flags(parser)


def _prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt is not None:
        return str(arguments.prompt)
    if str(arguments.file) == "-":
        return sys.stdin.read()
    try:
        return str(arguments.file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--file {arguments.file}: {error}") from error


def _stream(session: Session, prompt: str, params: SamplingParams, *, chat: bool) -> Any:
    if chat:
        messages = [{"role": "user", "content": prompt}]
        return session.stream(lambda llm: llm.chat(messages, params))
    return session.stream(lambda llm: llm.generate(prompt, params))


def run(arguments: argparse.Namespace) -> int:
    from kvern.cli.session import Session

    prompt, given = _prompt(arguments), given_sampling(arguments)
    with Session(model_name(arguments), **engine_options(arguments)) as session:
        params = replace(session.llm.default_sampling_params(), **({"max_tokens": MAX_TOKENS} | given))
        parts: list[RequestOutput] = []
        for part in _stream(session, prompt, params, chat=arguments.chat):
            parts.append(part)
            if part.outputs[0].error is not None:
                raise KvernError(f"the engine gave the request up: {part.outputs[0].error}")
            if not arguments.json:
                sys.stdout.write(part.outputs[0].text)
                sys.stdout.flush()
        print(_as_json(parts) if arguments.json else "")
    return 0


def _as_json(parts: list[RequestOutput]) -> str:
    answers = [part.outputs[0] for part in parts]
    return json.dumps(
        {
            "text": "".join(answer.text for answer in answers),
            "token_ids": [token for answer in answers for token in answer.token_ids],
            "finish_reason": answers[-1].finish_reason,
            "prompt_tokens": len(parts[0].prompt_token_ids),
            "cached_tokens": max(part.cached_tokens for part in parts),
        }
    )
