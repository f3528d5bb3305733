"""Batches for a device, written by hand: slices of sequences with their pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvern.runtime.device import PAGE_TOKENS, Device, StepBatch, StepResult


@dataclass
class Piece:
    """Tokens ``[begin, end)`` of a sequence through units ``[first, last)`` (last None: all). ``hidden`` are the rows
    of a continued span, float32 [end - begin, H]; ``logits`` are the positions wanted, all by default."""

    tokens: Sequence[int]
    pages: Sequence[int]
    begin: int = 0
    end: int | None = None
    first: int = 0
    last: int | None = None
    hidden: NDArray[np.float32] | None = None
    logits: Sequence[int] | None = None
    rows: slice = field(default_factory=lambda: slice(0))  # set by batch_of

    @property
    def stop(self) -> int:
        return len(self.tokens) if self.end is None else self.end


def batch_of(device: Device, pieces: Sequence[Piece]) -> StepBatch:
    ends = np.cumsum([piece.stop - piece.begin for piece in pieces])
    width = max(len(piece.pages) for piece in pieces)
    hidden = np.zeros((int(ends[-1]), device.hidden_size), np.float32)
    wanted: list[int] = []
    for piece, end in zip(pieces, ends.tolist(), strict=True):
        begin = end - (piece.stop - piece.begin)
        piece.rows = slice(begin, end)
        if piece.hidden is not None:
            hidden[piece.rows] = piece.hidden
        if piece.last is None or piece.last == device.units:
            positions = range(piece.begin, piece.stop) if piece.logits is None else piece.logits
            wanted += [begin + position - piece.begin for position in positions]
    return StepBatch(
        tokens=np.concatenate([np.array(p.tokens[p.begin : p.stop], np.int32) for p in pieces]),
        positions=np.concatenate([np.arange(p.begin, p.stop, dtype=np.int32) for p in pieces]),
        row_begin=np.concatenate([[0], ends]).astype(np.int32),
        unit_begin=np.array([p.first for p in pieces], np.int32),
        unit_end=np.array([device.units if p.last is None else p.last for p in pieces], np.int32),
        block_table=np.array([[*p.pages, *[0] * (width - len(p.pages))] for p in pieces], np.int32),
        hidden=hidden,
        logit_rows=np.array(wanted, np.int32),
        stop=np.zeros(1, np.uint8),
    )


def run(device: Device, *pieces: Piece) -> StepResult:
    return device.step(batch_of(device, pieces))


def logits_of(device: Device, tokens: Sequence[int], chunk: int | None = None) -> NDArray[np.float32]:
    """Logits at every position, float32 [R, V], the sequence on pages from 0, ``chunk`` tokens a step."""
    pages = range(-(-len(tokens) // PAGE_TOKENS))
    size = chunk or len(tokens)
    parts = [
        run(device, Piece(tokens, pages, begin, min(begin + size, len(tokens)))).logits
        for begin in range(0, len(tokens), size)
    ]
    return np.concatenate(parts)


def random_tokens(count: int, vocabulary: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocabulary, count).tolist()
