"""``kvern pull NAME``: fetch a model into the cache."""

from __future__ import annotations

import argparse

from kvern.progress_bar import ProgressBar
from kvern.weights import hub
from kvern.weights.catalogue import MODELS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(f"{m.name} ({m.download_size / 1e6:.0f} MB, {m.licence})" for m in MODELS.values())
    parser.add_argument("model", help=f"one of {known}; or hf:ORG/NAME[/FILE.gguf][@REVISION]", metavar="NAME")


def run(arguments: argparse.Namespace) -> int:
    """Fetch, then print the path alone on standard output, so that scripts can use it."""
    with ProgressBar(f"fetching {arguments.model}", in_bytes=True) as bar:
        path = hub.pull(arguments.model, bar)
    print(path)
    return 0
