"""What a caller chooses of a device."""

from __future__ import annotations

from dataclasses import dataclass

from kvern.core.errors import ConfigError

BACKENDS = ("cpu", "reference")
WEIGHT_FORMATS = ("file", "w8a8", "bf16", "f32")
KV_FORMATS = ("bf16", "kv8", "f32")


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """How a model is put on a back end. ``pages`` of 64 tokens; ``max_rows`` of one step; ``threads`` of cpu only.

    ``weight_format`` "file" keeps each matrix as the file has it. ``activations`` is of the reference back end:
    "exact", or "as_cpu" to round inputs as the cpu back end does.
    """

    backend: str = "cpu"
    weight_format: str = "file"
    kv_format: str = "bf16"
    pages: int = 64
    threads: int = 1
    max_rows: int = 512
    activations: str = "exact"

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        for name, value, known in (
            ("backend", self.backend, BACKENDS),
            ("weight_format", self.weight_format, WEIGHT_FORMATS),
            ("kv_format", self.kv_format, KV_FORMATS),
        ):
            if value not in known:
                raise ConfigError(f"{name} {value!r} is not one of {', '.join(known)}")
        for name, number in (("pages", self.pages), ("threads", self.threads), ("max_rows", self.max_rows)):
            if number < 1:
                raise ConfigError(f"{name} is {number}; it must be at least 1")
