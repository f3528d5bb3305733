"""How many blocks of each bitstack matrix fit into a number of bytes (BitStack, Wang et al. 2025, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvern.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BlockStack:
    """One matrix. ``positions`` of its blocks in the load order of the model, ascending; bytes of each block."""

    name: str
    positions: tuple[int, ...]
    block_bytes: int


def load_order(stacks: Sequence[BlockStack]) -> list[int]:
    """Whose block comes next: the first block of every matrix, then all others by position (equal ones in the order
    of the matrices). Any budget keeps a beginning of this list, so a larger one always keeps more."""
    later = sorted((position, i) for i, stack in enumerate(stacks) for position in stack.positions[1:])
    return [*range(len(stacks)), *(i for _, i in later)]


def blocks_within(stacks: Sequence[BlockStack], budget: int) -> list[int]:
    """Blocks of each matrix whose bytes together are at most ``budget``. Raises ConfigError with the least possible
    one when not even a block of each fits."""
    counts, used = [0] * len(stacks), 0
    for step, i in enumerate(load_order(stacks)):
        used += stacks[i].block_bytes
        if used > budget:
            if step < len(stacks):
                least = sum(stack.block_bytes for stack in stacks)
                raise ConfigError(f"{budget} bytes for blocks of weights; one block of each takes {least}")
            break
        counts[i] += 1
    return counts
