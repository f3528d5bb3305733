"""Sampling flags of ``generate`` and ``chat``; what is not given is left to the model and to ``SamplingParams``."""

from __future__ import annotations

import argparse
from typing import Any

from kvern.config.flags import add_flags
from kvern.config.schema import SamplingSettings, settings_of


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, SamplingSettings)
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", default=argparse.SUPPRESS, help="stop before this text"
    )


def given_sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    """The sampling flags that were given, as arguments of ``SamplingParams``."""
    names = {*settings_of(SamplingSettings), "stop"}
    return {name: value for name, value in vars(arguments).items() if name in names}
