"""Flags and environment variables, generated from the schema; every value knows where it came from.

A flag wins over the environment (``KVERN_MAX_NUM_SEQS``), which wins over the default. Dashes and underscores in
flag names are the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kvern.config.schema import Setting, settings_of
from kvern.core.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Resolved(Generic[T]):
    """Settings, and for each field its origin: "default", "flag", or the name of an environment variable."""

    values: T
    origins: dict[str, str]


def dashed(arguments: Sequence[str]) -> list[str]:
    """``--max_model_len=5`` as ``--max-model-len=5``; values, and all after ``--``, stay as they are."""
    found: list[str] = []
    for index, argument in enumerate(arguments):
        if argument == "--":
            return found + list(arguments[index:])
        name, equals, value = argument.partition("=")
        is_flag = name.startswith("--") and " " not in name
        found.append((name.replace("_", "-") if is_flag else name) + equals + value)
    return found


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """``parse`` for argparse: its ConfigError becomes a usage error with the same words."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def environment_name(name: str) -> str:
    return "KVERN_" + name.upper()


def _help(setting: Setting, default: Any) -> str:
    parts = [f"in {setting.unit}"] if setting.unit else []
    if default is not None:
        parts.append(f"default: {default}")
    return f"{setting.doc} ({'; '.join(parts)})" if parts else setting.doc


def add_flags(parser: argparse.ArgumentParser, group: type[Any], *, skip: frozenset[str] = frozenset()) -> None:
    """One flag per field of ``group`` but those in ``skip``; a flag not given leaves no attribute behind."""
    section = parser.add_argument_group((group.__doc__ or "").split("\n")[0].rstrip("."))
    for name, (setting, default) in settings_of(group).items():
        if name in skip:
            continue
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(setting, default), "dest": name}
        if isinstance(default, bool):
            section.add_argument(flag_name(name), *setting.aliases, action=argparse.BooleanOptionalAction, **options)
            continue
        if setting.choices:
            options["choices"] = setting.choices
        else:
            metavar = setting.unit.split(",")[0].split(" ")[0].upper() or name.split("_")[-1].upper()
            options |= {"type": _checked(setting.parse), "metavar": metavar}
        section.add_argument(flag_name(name), *setting.aliases, **options)


def _from_environment(name: str, text: str, setting: Setting, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in {"0", "1", "true", "false"}:
            raise ConfigError(f"{name}={text!r}: write 1 or 0")
        return text.lower() in {"1", "true"}
    if setting.choices and text not in setting.choices:
        raise ConfigError(f"{name}={text!r}: one of {', '.join(setting.choices)}")
    try:
        return setting.parse(text)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def resolve(group: type[T], given: argparse.Namespace, environment: Mapping[str, str]) -> Resolved[T]:
    """The settings of ``group`` from flags, environment and defaults. Raises ConfigError that names the variable."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, (setting, default) in settings_of(group).items():
        variable = environment_name(name)
        if name in vars(given):
            values[name], origins[name] = getattr(given, name), "flag"
        elif environment.get(variable):
            values[name] = _from_environment(variable, environment[variable], setting, default)
            origins[name] = variable
        else:
            values[name], origins[name] = default, "default"
    return Resolved(group(**values), origins)
