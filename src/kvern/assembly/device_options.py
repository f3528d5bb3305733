"""What a caller chooses of a device. KV formats are parsed, and refused, by ``kvern.formats.kv.get``."""

from __future__ import annotations

from dataclasses import dataclass

from kvern.config.schema import WEIGHT_FORMATS
from kvern.core.errors import ConfigError
from kvern.formats import kv as kv_formats
from kvern.formats.capabilities import AUTO, BACKENDS, activation_name, kv_refusal, load_refusal

FILE = "file"


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """How a model is put on a back end. ``pages`` of 64 tokens; ``max_rows`` of one step; ``threads`` of cpu only,
    tied to cores with ``pin_threads``; at most ``sequences`` on the device at once, which KV formats with a tail
    reserve memory for.

    ``weight_format`` "file" keeps each matrix as the file has it. ``activation_format`` "auto" brings the inputs of
    each to its format's own form. ``activations`` is of the reference back end: "exact", or "as_cpu" to round inputs
    as the cpu back end does. ``weight_budget``: bytes that all weights may take on the cpu back end, where the model
    has bitstack matrices to cut down (None: all of them).
    """

    backend: str = "cpu"
    weight_format: str = FILE
    activation_format: str = AUTO
    kv_format: str = "bf16"
    pages: int = 64
    threads: int = 1
    max_rows: int = 512
    activations: str = "exact"
    sequences: int = 64
    weight_budget: int | None = None
    pin_threads: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        for name, value, known in (
            ("backend", self.backend, BACKENDS),
            ("weight_format", self.weight_format, WEIGHT_FORMATS),
        ):
            if value not in known:
                raise ConfigError(f"{name} {value!r} is not one of {', '.join(known)}")
        kv_formats.get(self.kv_format)
        if self.activation_format != AUTO:
            activation_name(self.activation_format)
        refused = kv_refusal(self.kv_format, self.backend)
        if self.weight_format != FILE:
            refused = refused or load_refusal(self.weight_format)
        if refused is not None:
            raise ConfigError(refused)
        for name in ("pages", "threads", "max_rows", "sequences"):
            number = getattr(self, name)
            if number < 1:
                raise ConfigError(f"{name} is {number}; it must be at least 1")
        if self.weight_budget is not None and self.backend != "cpu":
            raise ConfigError(f"weight_budget is for the cpu back end, not {self.backend}")
