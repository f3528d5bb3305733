"""Bitstack matrices of a model on the native back end: which of their blocks are in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kvern import _native
from kvern.formats.weights import bitstack
from kvern.kernels.cpu.packing import Packer
from kvern.kernels.ops import Weight
from kvern.kernels.weight_budget import BlockStack, blocks_within


@dataclass(slots=True)
class ResidentBlocks:
    """Packs matrices with one block each and remembers where they came from, so that others can be brought in.

    Blocks that are let go are freed; bringing them in again reads the (mapped) file anew.
    """

    sources: list[tuple[Weight, _native.PackedWeight]] = field(default_factory=list)

    def pack(self, weight: Weight, pool: _native.Pool) -> _native.PackedWeight:
        """Its first block. Raises ValueError for a matrix that is not well formed."""
        packed = _native.PackedWeight.from_blocks(
            weight.format, np.ascontiguousarray(weight.raw), weight.n, weight.k, weight.rows, pool, weight.header, 1
        )
        weight.let_go()
        self.sources.append((weight, packed))
        return packed

    def packer(self, otherwise: Packer) -> Packer:
        """Packs bitstack matrices here and hands all others to ``otherwise``."""

        def choose(weight: Weight, pool: _native.Pool) -> _native.PackedWeight:
            return (self.pack if weight.format.upper() == bitstack.NAME else otherwise)(weight, pool)

        return choose

    def stacks(self) -> list[BlockStack]:
        return [
            BlockStack(
                weight.name,
                tuple(bitstack.split_header(weight.header, weight.k).positions.tolist()),
                int(packed.block_bytes),
            )
            for weight, packed in self.sources
        ]

    def counts(self) -> list[int]:
        """Blocks in memory, matrix by matrix."""
        return [int(packed.resident_blocks) for _, packed in self.sources]

    def block_bytes(self) -> int:
        """Bytes of all blocks in memory."""
        return sum(int(packed.resident_blocks) * int(packed.block_bytes) for _, packed in self.sources)

    def least_bytes(self) -> int:
        """Bytes of one block of each matrix."""
        return sum(int(packed.block_bytes) for _, packed in self.sources)

    def counts_within(self, budget: int | None) -> list[int]:
        """What ``set_counts`` takes so that blocks have at most ``budget`` bytes (None: all). Raises ConfigError."""
        if budget is None:
            return [int(packed.blocks) for _, packed in self.sources]
        return blocks_within(self.stacks(), budget)

    def set_counts(self, counts: Sequence[int], pool: _native.Pool) -> None:
        """Frees first, then brings in, so that memory never holds more than before and after. No step may run."""
        wanted = list(zip(self.sources, counts, strict=True))
        for grow in (False, True):
            for (weight, packed), count in wanted:
                if (count > packed.resident_blocks) is grow and count != packed.resident_blocks:
                    raw = np.ascontiguousarray(weight.raw)
                    packed.set_blocks(count, raw, weight.header, weight.rows, pool)
                    weight.let_go()
