"""MODEL and the flags of the engine, shared by every verb that loads one."""

from __future__ import annotations

import argparse
import os
from typing import Any

from kvern.config.flags import add_flags, resolve
from kvern.config.schema import EngineSettings, ModelSettings
from kvern.core.errors import ConfigError

# Flags bear the names that users of other servers know; the engine has its own.
OPTION_NAMES = {
    "max_model_len": "max_context",
    "max_num_seqs": "max_running",
    "max_num_batched_tokens": "max_step_tokens",
}


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a name (see kvern pull), a .gguf or .safetensors file, or a folder"
    )
    parser.add_argument("-m", "--model", dest="model_flag", metavar="MODEL", help="the same, as a flag")
    add_flags(parser, ModelSettings)
    add_flags(parser, EngineSettings)


def model_name(arguments: argparse.Namespace) -> str:
    """MODEL, given once. Raises ConfigError."""
    given = [name for name in (arguments.model, arguments.model_flag) if name]
    if len(given) != 1:
        raise ConfigError("give one MODEL: a name (see kvern pull), a .gguf file, or a folder")
    return str(given[0])


def engine_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options of ``AsyncLLM`` that a flag or the environment set; the others keep the engine's defaults."""
    found: dict[str, Any] = {}
    for group in (ModelSettings, EngineSettings):
        resolved = resolve(group, arguments, os.environ)
        for name, origin in resolved.origins.items():
            if origin != "default":
                found[OPTION_NAMES.get(name, name)] = getattr(resolved.values, name)
    return found
