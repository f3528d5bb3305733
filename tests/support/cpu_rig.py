"""Tiny models on the native back end, and steps over them written as parts: one part is one slice of a step."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import tiny_models
from numpy.typing import NDArray

from kvern import _native
from kvern.kernels.cpu.device import CpuDevice, CpuLimits
from kvern.models.network import Model
from kvern.models.open import open_network
from kvern.runtime.device import Device, StepBatch

PAGES = 64


@dataclass
class Part:
    """Tokens at ``start`` of the sequence whose pages are ``table``, through units ``[unit_begin, unit_end)``.

    Its first page also names its tail slot, where the KV format has tails.
    """

    tokens: Sequence[int]
    start: int
    table: Sequence[int]
    unit_begin: int = 0
    unit_end: int | None = None
    hidden: NDArray[np.float32] | None = None


@dataclass
class Outcome:
    logits: list[NDArray[np.float32]]  # of all rows of each part that goes to the last unit (empty otherwise)
    hidden: list[NDArray[np.float32]]
    reached: list[int]


@lru_cache(maxsize=32)
def tiny_network(family: str, weight_format: str = "F32", **sizes: int) -> Model:
    folder = Path(tempfile.mkdtemp(prefix="kvern-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # mapped until the process ends
    file_format = "F32" if weight_format in ("W8A8", "BF16") else weight_format
    path = tiny_models.write_gguf(folder / "model.gguf", family, file_format, **sizes)
    network = open_network(path).network
    return network.in_format(weight_format) if file_format != weight_format else network


def cpu_device(network: Model, kv_format: str = "bf16", threads: int = 1, **limits: int) -> CpuDevice:
    return CpuDevice(
        network, kv_format, CpuLimits(**({"pages": PAGES, "max_rows": 640} | limits)), _native.Pool(threads)
    )


def batch_of(device: Device, parts: Sequence[Part], stop: bool = False) -> StepBatch:
    counts = [len(part.tokens) for part in parts]
    begin = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    ends = [device.units if part.unit_end is None else part.unit_end for part in parts]
    width = max(len(part.table) for part in parts)
    table = np.full((len(parts), width), -1, np.int32)
    hidden = np.zeros((begin[-1], device.hidden_size), np.float32)
    for s, part in enumerate(parts):
        table[s, : len(part.table)] = part.table
        if part.hidden is not None:
            hidden[begin[s] : begin[s + 1]] = part.hidden
    wanted = [np.arange(begin[s], begin[s + 1]) for s, end in enumerate(ends) if end == device.units]
    return StepBatch(
        tokens=np.concatenate([np.asarray(part.tokens, np.int32) for part in parts]),
        positions=np.concatenate(
            [np.arange(p.start, p.start + n, dtype=np.int32) for p, n in zip(parts, counts, strict=True)]
        ),
        row_begin=begin,
        unit_begin=np.array([part.unit_begin for part in parts], np.int32),
        unit_end=np.array(ends, np.int32),
        block_table=table,
        hidden=hidden,
        logit_rows=np.concatenate([np.zeros(0, np.int64), *wanted]).astype(np.int32),
        stop=np.array([stop], np.uint8),
        tail_slot=np.array([part.table[0] for part in parts], np.int32) if device.tail_slots else None,
    )


def run(device: Device, *parts: Part, stop: bool = False) -> Outcome:
    """One step; logits of every row that gets to the last unit."""
    batch = batch_of(device, parts, stop)
    result = device.step(batch)
    logits, at = [], 0
    for s, part in enumerate(parts):
        rows = len(part.tokens) if batch.unit_end[s] == device.units else 0
        logits.append(result.logits[at : at + rows])
        at += rows
    hidden = [batch.hidden[batch.row_begin[s] : batch.row_begin[s + 1]] for s in range(len(parts))]
    return Outcome(logits, hidden, [int(unit) for unit in result.reached])


def logits_of(device: Device, tokens: Sequence[int], table: Sequence[int], chunk: int = 512) -> NDArray[np.float32]:
    """Logits of every position of a sequence prefilled in chunks: float32 [tokens, V]."""
    chunks = [run(device, Part(tokens[at : at + chunk], at, table)).logits[0] for at in range(0, len(tokens), chunk)]
    return np.concatenate(chunks)


def same_bits(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))


def random_tokens(network: Model, count: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, network.vocab_size, count)]


def random_table(seed: int = 0, pages: int = PAGES) -> list[int]:
    return [int(p) for p in np.random.default_rng(seed).permutation(pages)]
