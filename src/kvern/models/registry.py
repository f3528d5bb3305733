"""Families by the name that a file gives them. A family's module is imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from kvern.core.errors import ModelFileError
from kvern.models.basics import GgufFacts
from kvern.models.facts import Facts
from kvern.models.network import Forward
from kvern.models.spec import ModelSpec
from kvern.models.tensors import Layout

# What a file calls its architecture -> the module of the family.
GGUF_ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3"}
HF_MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
}


class Family(Forward, Protocol):
    """What every family's module exports beside its forward pass."""

    GGUF: Layout
    HF: Layout

    def spec_from_gguf(self, facts: GgufFacts) -> ModelSpec: ...

    def spec_from_hf(self, config: Facts) -> ModelSpec: ...


def for_gguf(architecture: str) -> Family:
    """The family of a GGUF file's ``general.architecture``; raises ModelFileError when there is none."""
    return _family(GGUF_ARCHITECTURES, architecture, "architecture")


def for_hf(model_type: str) -> Family:
    """The family of a config.json's ``model_type``; raises ModelFileError when there is none."""
    return _family(HF_MODEL_TYPES, model_type, "model type")


def named(family: str) -> Family:
    """The family that a ``ModelSpec`` names; raises ModelFileError when there is none."""
    return _family({module: module for module in HF_MODEL_TYPES.values()}, family, "family")


def _family(table: dict[str, str], name: str, what: str) -> Family:
    module = table.get(name)
    if module is None:
        raise ModelFileError(f"{what} {name!r} is not supported; supported are {', '.join(sorted(table))}")
    return cast(Family, import_module(f"kvern.models.{module}"))
