"""A model on the native back end: `kvern.runtime.device.Device`."""

from __future__ import annotations

from dataclasses import dataclass

from kvern import _native
from kvern.core.errors import ConfigError
from kvern.formats import kv as kv_formats
from kvern.kernels.cpu.packing import Packer, pack
from kvern.kernels.cpu.recorder import record
from kvern.kernels.cpu.resident_blocks import ResidentBlocks
from kvern.kernels.ops import Network
from kvern.kernels.weight_budget import BlockStack
from kvern.runtime.device import StepBatch, StepResult


@dataclass(frozen=True, slots=True)
class CpuLimits:
    """``pages`` KV pages of 64 tokens; at most ``max_rows`` rows a step (scratch is sized for them).

    ``chunk_tokens`` is where softmax partials are cut. It is part of the numerics: every device whose bits are to be
    compared must have the same. ``tail_slots`` sequences at once, of KV formats with a tail.
    ``weight_budget``: bytes that weights may take, where there are bitstack matrices to choose from (None: all).
    ``lanes`` steps may run side by side, each with scratch of its own; more wait.
    ``apart`` runs every operation on its own instead of fused ones; the bits are the same, and a test says so.
    """

    pages: int
    max_rows: int = 512
    chunk_tokens: int = 512
    tail_slots: int = 64
    weight_budget: int | None = None
    lanes: int = 1
    apart: bool = False


class CpuDevice:
    """Weights are packed, and the program recorded, when it is made; ``pool`` serves all its steps.

    ``pack`` may be another packer: one that remembers, for models that share most matrices. Raises ConfigError for
    an unknown KV format or impossible limits, ModelFileError for weights it cannot run.
    """

    def __init__(
        self, network: Network, kv_format: str, limits: CpuLimits, pool: _native.Pool, pack: Packer = pack
    ) -> None:
        found = kv_formats.get(kv_format)
        if found.keys.name == "f32":
            raise ConfigError("KV format 'f32' is for the reference back end")
        self.pool = pool  # its sampler shares it
        self._blocks = ResidentBlocks()
        program = record(network, pool, self._blocks.packer(pack))
        self._packed = program.weights
        self._blocks.set_counts(self._block_counts(limits.weight_budget), pool)
        self._limits = limits
        self._tail_slots = limits.tail_slots if found.tail else 0
        self._shape = 2 * len(network.attention), network.vocab_size, network.hidden_size
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
    def tail_slots(self) -> int:
        return self._tail_slots

    @property
    def max_rows(self) -> int:
        """Rows of one step at most."""
        return self._limits.max_rows

    def step(self, batch: StepBatch) -> StepResult:
        """One native call without the GIL. Raises ValueError, before touching anything, for a malformed batch."""
        logits, reached, greedy = self.model.step(batch)
        return StepResult(logits=logits, reached=reached, greedy=greedy)

    def adopt_thread(self) -> None:
        self.pool.pin_caller()

    def copy_page(self, source: int, target: int) -> None:
        """Raises ValueError for a page outside the pool."""
        self.model.copy_page(source, target)

    def set_weight_budget(self, budget: int | None) -> None:
        """Keep, and bring in, as many blocks of bitstack matrices as fit when all weights together take at most
        ``budget`` bytes (None: all blocks). Waits for the step under way; steps after it run on the new weights.

        Raises ConfigError, changing nothing, when not even one block of each matrix fits.
        """
        counts = self._block_counts(budget)
        self.model.between_steps(lambda: self._blocks.set_counts(counts, self.pool))

    @property
    def weight_blocks(self) -> list[int]:
        """Blocks in memory of each bitstack matrix, in the order of use."""
        return self._blocks.counts()

    def block_stacks(self) -> list[BlockStack]:
        """Size and load order of the blocks of each bitstack matrix, in the order of use."""
        return self._blocks.stacks()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in memory."""
        return sum(weight.nbytes for weight in self._packed)

    def _block_counts(self, budget: int | None) -> list[int]:
        if budget is None:
            return self._blocks.counts_within(None)
        others = self.weight_bytes - self._blocks.block_bytes()
        least = others + self._blocks.least_bytes()
        if budget < least:
            raise ConfigError(f"weight_budget={budget} bytes is too small: weights take at least {least}")
        return self._blocks.counts_within(budget - others)

    def resident_bytes(self) -> int:
        """Weights, scratch, and all KV pages and tails as if every one had been written."""
        kept = self.page_bytes * self.pages + int(self.model.tail_bytes)
        return self.weight_bytes + int(self.model.scratch_bytes) + kept
