"""Which number formats go together: the capability table, and why the rest is refused.

A combination is (weight format, activation format, KV format, back end). The KV format is independent of the others:
attention hands float32 rows to the products on either side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvern.core.errors import ConfigError
from kvern.formats import activations
from kvern.formats import kv as kv_formats
from kvern.formats import weights as weight_formats

BACKENDS = ("cpu", "reference")
AUTO = "auto"  # each weight format's own activation format


@dataclass(frozen=True, slots=True)
class WeightLine:
    """What one weight format can be used with. ``at_load``: any model can be brought to it while it loads."""

    name: str
    bits: float  # per weight, scales of blocks included
    activations: tuple[str, ...]  # its own first
    at_load: bool


@dataclass(frozen=True, slots=True)
class KvLine:
    """``bits`` of an item of keys and of values; ``shared`` says whether the prefix cache may share its pages."""

    name: str
    bits: tuple[int, int]
    backends: tuple[str, ...]
    shared: bool


def weight_lines() -> Iterator[WeightLine]:
    for name in weight_formats.NAMES:
        form = weight_formats.get(name)
        yield WeightLine(form.name, form.bits_per_weight, form.activations, load_refusal(name) is None)


def kv_lines() -> Iterator[KvLine]:
    for name in kv_formats.NAMES:
        form = kv_formats.get(name)
        backends = tuple(backend for backend in BACKENDS if kv_refusal(name, backend) is None)
        yield KvLine(name, (form.keys.bits, form.values.bits), backends, form.share == "always")


def activation_name(text: str) -> str:
    """The activation format that a flag names, with ``-`` for spaces ("int8-row"). Raises ConfigError."""
    found = {name.replace(" ", "-"): name for name in activations.FILES}
    if text in activations.FILES:
        return text
    if text not in found:
        raise ConfigError(f"activation format {text!r} is not known; known are {AUTO}, {', '.join(found)}")
    return found[text]


def kv_refusal(kv_format: str, backend: str) -> str | None:
    """Why ``backend`` cannot keep KV in ``kv_format``; None when it can. Raises ConfigError for unknown names."""
    if backend == "cpu" and kv_formats.get(kv_format).keys.name == "f32":
        return f"KV format {kv_format} is for the reference back end; take bf16"
    return None


def activation_refusal(weight_format: str, activation: str) -> str | None:
    """Why weights in ``weight_format`` cannot be multiplied with inputs in ``activation``; None when they can."""
    form = weight_formats.get(weight_format)
    if activation in form.activations:
        return None
    return (
        f"weights in {form.name} cannot take inputs as {activation!r}; they take "
        f"{', '.join(form.activations)} ({AUTO} is {form.activation})"
    )


def load_refusal(weight_format: str) -> str | None:
    """Why a model cannot be brought to ``weight_format`` while it loads; None when it can."""
    form = weight_formats.get(weight_format)
    if form.headered is None or form.headered.encode_rows is not None:
        return None
    return f"weights in {form.name} need calibration: make a file with `kvern quantize --format {form.name.lower()}`"
