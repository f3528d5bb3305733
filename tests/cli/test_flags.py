"""Flags are views of the schema: generated, spelled either way, with the origin of every value."""

from __future__ import annotations

import argparse
from dataclasses import fields

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvern.assembly.engine import EngineOptions
from kvern.cli.model_flags import OPTION_NAMES
from kvern.config.flags import add_flags, dashed, environment_name, resolve
from kvern.config.schema import (
    EngineSettings,
    ModelSettings,
    SamplingSettings,
    ServerSettings,
    parse_bytes,
    settings_of,
)
from kvern.core.errors import ConfigError

GROUPS = (ModelSettings, EngineSettings, ServerSettings, SamplingSettings)


def parsed(group: type, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser, group)
    return parser.parse_args(dashed(arguments))


@pytest.mark.parametrize("group", GROUPS)
def test_every_field_has_a_doc_and_a_flag(group: type) -> None:
    text = argparse.ArgumentParser()
    add_flags(text, group)
    shown = text.format_help()
    for item in fields(group):
        assert len(item.metadata["setting"].doc) > 3
        assert f"--{item.name.replace('_', '-')}" in shown


def test_no_flag_means_two_things() -> None:
    names = [name for group in GROUPS for name in settings_of(group)]
    aliases = [alias for group in GROUPS for setting, _ in settings_of(group).values() for alias in setting.aliases]
    assert len(names) == len(set(names))
    assert len(aliases) == len(set(aliases))


@pytest.mark.parametrize("flag", ["--max-model-len", "--max_model_len", "-c", "--ctx-size", "--ctx_size"])
def test_dashes_underscores_and_aliases_are_one_flag(flag: str) -> None:
    assert parsed(EngineSettings, flag, "512").max_model_len == 512


def test_values_keep_their_underscores() -> None:
    assert dashed(["--served_model_name=my_model", "--", "--a_b"]) == ["--served-model-name=my_model", "--", "--a_b"]
    assert dashed(["--api_key", "a_b"]) == ["--api-key", "a_b"]


def test_a_flag_wins_over_the_environment_which_wins_over_the_default() -> None:
    environment = {"KVERN_PORT": "9000", "KVERN_HOST": "::1"}
    resolved = resolve(ServerSettings, parsed(ServerSettings, "--port", "9001"), environment)
    assert (resolved.values.port, resolved.values.host) == (9001, "::1")
    assert resolved.origins["port"] == "flag"
    assert resolved.origins["host"] == "KVERN_HOST"
    assert resolved.origins["api_key"] == "default"


@pytest.mark.parametrize(
    ("group", "name", "text"),
    [
        (ServerSettings, "port", "70000"),
        (EngineSettings, "max_num_seqs", "0"),
        (ServerSettings, "event_log", "maybe"),
        (ModelSettings, "backend", "cuda"),
    ],
)
def test_a_bad_environment_value_names_its_variable(group: type, name: str, text: str) -> None:
    variable = environment_name(name)
    with pytest.raises(ConfigError, match=variable):
        resolve(group, argparse.Namespace(), {variable: text})


@pytest.mark.parametrize("arguments", [["--port", "x"], ["--port", "-1"], ["--prot", "1"]])
def test_a_bad_flag_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parsed(ServerSettings, *arguments)
    assert raised.value.code == 2
    assert "--pr" in capsys.readouterr().err or "--port" in arguments


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GiB", 2 << 30), ("1.5G", 1_500_000_000), ("800MB", 800_000_000), ("4096", 4096), ("3 kib", 3072)],
)
def test_sizes_in_bytes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@given(st.text(max_size=12))
def test_any_text_is_a_positive_size_or_a_config_error(text: str) -> None:
    try:
        value = parse_bytes(text)
    except ConfigError:
        return
    assert value > 0


def test_the_shown_defaults_are_the_engines() -> None:
    """Flags that are not given are not passed on, so the defaults that ``--help`` shows must be those used."""
    engine = {item.name: item.default for item in msgspec.structs.fields(EngineOptions)}
    for group in (ModelSettings, EngineSettings):
        for name, (_, default) in settings_of(group).items():
            if name != "chat_template":  # of the text side, not of the engine
                assert engine[OPTION_NAMES.get(name, name)] == default, name
