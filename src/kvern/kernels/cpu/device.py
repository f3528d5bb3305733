"""A model on the native back end: `kvern.runtime.device.Device`."""

from __future__ import annotations

from dataclasses import dataclass

from kvern import _native
from kvern.core.errors import ConfigError
from kvern.kernels.cpu.recorder import record
from kvern.kernels.ops import Network
from kvern.runtime.device import StepBatch, StepResult

KV_FORMATS = ("bf16", "kv8")


@dataclass(frozen=True, slots=True)
class CpuLimits:
    """``pages`` KV pages of 64 tokens; at most ``max_rows`` rows a step (scratch is sized for them).

    ``chunk_tokens`` is where softmax partials are cut. It is part of the numerics: every device whose bits are to be
    compared must have the same.
    """

    pages: int
    max_rows: int = 512
    chunk_tokens: int = 512


class CpuDevice:
    """Weights are packed, and the program recorded, when it is made; ``pool`` serves all its steps.

    Raises ConfigError for an unknown KV format or impossible limits, ModelFileError for weights it cannot run.
    """

    def __init__(self, network: Network, kv_format: str, limits: CpuLimits, pool: _native.Pool) -> None:
        if kv_format not in KV_FORMATS:
            raise ConfigError(f"kv_format={kv_format!r} is not one of {', '.join(KV_FORMATS)} on the cpu back end")
        self.pool = pool  # its sampler shares it
        program = record(network, pool)
        self._limits = limits
        self._shape = 2 * len(network.attention), network.vocab_size, network.hidden_size
        self._weight_bytes = sum(weight.nbytes for weight in program.weights)
        try:
            self.model = _native.Model(pool, program, kv_format, limits)
        except ValueError as error:
            raise ConfigError(f"the cpu back end cannot run this model: {error}") from error

    @property
    def units(self) -> int:
        return self._shape[0]

    @property
    def vocab_size(self) -> int:
        return self._shape[1]

    @property
    def hidden_size(self) -> int:
        return self._shape[2]

    @property
    def page_bytes(self) -> int:
        return int(self.model.page_bytes)

    @property
    def pages(self) -> int:
        return self._limits.pages

    @property
    def max_rows(self) -> int:
        """Rows of one step at most."""
        return self._limits.max_rows

    def step(self, batch: StepBatch) -> StepResult:
        """One native call without the GIL. Raises ValueError, before touching anything, for a malformed batch."""
        logits, reached = self.model.step(batch)
        return StepResult(logits=logits, reached=reached)

    def copy_page(self, source: int, target: int) -> None:
        """Raises ValueError for a page outside the pool."""
        self.model.copy_page(source, target)

    def resident_bytes(self) -> int:
        """Weights, scratch, and all KV pages as if every one had been written."""
        return self._weight_bytes + int(self.model.scratch_bytes) + self.page_bytes * self.pages
