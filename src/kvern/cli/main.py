"""Entry point of ``kvern``: finds the verb, imports its module alone, and turns known errors into one line."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from kvern import __version__
from kvern.config.flags import dashed
from kvern.core.errors import KvernError

VERBS = {
    "serve": "serve a model over an OpenAI-compatible HTTP API",
    "chat": "talk to a model in this terminal",
    "generate": "continue a prompt and print the result",
    "pull": "fetch a model by name",
    "quantize": "make a smaller file of a model, and say what it costs",
    "limits": "how close to this machine's limits the kernels are",
    "formats": "list the number formats and what goes with what",
    "bench": "measure a server (bench serve) or the engine (bench offline)",
}
USAGE_ERROR = 2
INTERRUPTED = 130


def overview() -> str:
    verbs = "\n".join(f"  {name:<10} {text}" for name, text in VERBS.items())
    return f"usage: kvern VERB ... | kvern VERB --help | kvern --version\n\n{verbs}"


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The verb's parser, with ``run`` among its defaults."""
    module = importlib.import_module(f"kvern.cli.{verb}")
    parser = argparse.ArgumentParser(prog=f"kvern {verb}", description=VERBS[verb], allow_abbrev=False)
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status. Errors of ``kvern.core.errors`` are printed without a trace."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verb = given[0] if given else "--help"
    if verb in {"--version", "-V", "version"}:
        print(f"kvern {__version__}")
        return 0
    if verb in {"--help", "-h", "help"}:
        print(overview())
        return 0
    if verb not in VERBS:
        print(f"kvern: unknown verb {verb!r}\n{overview()}", file=sys.stderr)
        return USAGE_ERROR
    parsed = parser_of(verb).parse_args(dashed(given[1:]))
    try:
        return int(parsed.run(parsed))
    except KvernError as error:
        print(f"kvern {verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left; Python must not try to flush to it once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
