"""``kvern chat``: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from kvern.cli.model_flags import add_model_flags, engine_options, model_name
from kvern.cli.sampling import add_sampling_flags, given_sampling
from kvern.core.errors import InvalidRequest, KvernError

if TYPE_CHECKING:
    from kvern.cli.session import Session
    from kvern.sampling_params import SamplingParams

HELP = "Ctrl-C stops an answer, Ctrl-D leaves; /new starts afresh."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", metavar="TEXT", help="instructions put before the conversation")
    add_model_flags(parser)
    add_sampling_flags(parser)


def _ask() -> str | None:
    """The next message; None at the end of input."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
    except KeyboardInterrupt:
        print(f"\n{HELP}", file=sys.stderr)
        return ""


def answer(session: Session, messages: list[dict[str, str]], params: SamplingParams) -> str:
    """Print the answer as it comes and return it; what was said stays when Ctrl-C cuts it short."""
    said = ""
    try:
        for part in session.stream(lambda llm: llm.chat(messages, params)):
            output = part.outputs[0]
            if output.error is not None:
                raise KvernError(f"the engine gave the answer up: {output.error}")
            said += output.text
            sys.stdout.write(output.text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(" (stopped)", end="", file=sys.stderr)
    print()
    return said


def run(arguments: argparse.Namespace) -> int:
    if sys.stdin.isatty():
        import readline  # noqa: F401 - importing it gives input() line editing and history
    from kvern.cli.session import Session

    opening = [{"role": "system", "content": arguments.system}] if arguments.system else []
    messages = list(opening)
    with Session(model_name(arguments), **engine_options(arguments)) as session:
        params = replace(session.llm.default_sampling_params(), **({"max_tokens": None} | given_sampling(arguments)))
        print(HELP, file=sys.stderr)
        while (line := _ask()) is not None:
            if line.strip() == "/new":
                messages = list(opening)
            elif line.strip():
                asked = [*messages, {"role": "user", "content": line}]
                try:
                    said = answer(session, asked, params)
                except InvalidRequest as error:  # too long, most often: the conversation goes on without this turn
                    print(f"{error} (/new starts afresh)", file=sys.stderr)
                    continue
                messages = [*asked, {"role": "assistant", "content": said}]
    return 0
