"""Random weights in every packed format: every bit pattern of the codes, sane scales."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.formats import mixed_header, weights
from kvern.formats.weights import bitstack, qoq, w4a4_mixed, w4a16

# name: (inputs of a block, bytes of a block, where its f16 numbers lie)
BLOCKS = {
    "q4_0": (32, 18, (0,)),
    "q4_1": (32, 20, (0, 2)),
    "q5_0": (32, 22, (0,)),
    "q5_1": (32, 24, (0, 2)),
    "q8_0": (32, 34, (0,)),
    "q4_k": (256, 144, (0, 2)),
    "q5_k": (256, 176, (0, 2)),
    "q6_k": (256, 210, (208,)),
}
PLAIN = ("f32", "f16", "bf16", "w8a8")
# name: inputs of a group, for formats with files of their own kind
GROUPED = {"qoq": qoq.GROUP, "w4a16": w4a16.GROUP, "bitstack": 8}
SYMMETRIC = ("w6", "w4a4_mixed", "bipolar1", "bipolar3", "bipolar7", "bipolar8")  # in groups of 64 inputs
AS_BF16 = ("bf16", "w4a16")  # inputs are rounded to bf16 on AMX, where they take tiles for every number of rows
FLOAT_ROWS = ("f32", "f16", "bitstack")  # never tiles
FORMATS = (*BLOCKS, *PLAIN, *GROUPED, *SYMMETRIC)


def random_blocks(name: str, n: int, k: int, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 [n, bytes of a row]; ``k`` is a multiple of the format's block."""
    rng = np.random.default_rng(seed)
    block, size, halves = BLOCKS[name]
    raw = rng.integers(0, 256, (n * k // block, size), dtype=np.uint8)
    for at in halves:
        numbers = rng.uniform(-0.02, 0.02, len(raw)).astype(np.float16)
        raw[:, at : at + 2] = numbers.view(np.uint8).reshape(-1, 2)
    return raw.reshape(n, -1)


def block_of(name: str) -> int:
    """What the number of inputs must be a multiple of."""
    return BLOCKS[name][0] if name in BLOCKS else 64 if name in SYMMETRIC else GROUPED.get(name, 1)


def random_qoq(n: int, k: int, seed: int = 0) -> NDArray[np.uint8]:
    """Rows of qoq, all that the format allows: every code under every s2, rebuilt values up to +-127."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (n, k), dtype=np.uint8)
    s2 = rng.integers(1, 17, (n, k // qoq.GROUP), dtype=np.uint8)
    zeros = rng.integers(np.maximum(15 * s2.astype(int) - 127, 0), 128).astype(np.uint8)
    return qoq.pack(codes, s2, zeros, rng.uniform(1e-4, 2e-3, n).astype(np.float32))


def mixed_header_of(k: int) -> NDArray[np.uint8]:
    """A header of w4a4_mixed: columns in no order, one group wide."""
    return mixed_header.calibrated_header(np.random.default_rng(k).random(k, dtype=np.float32), 1)


def random_weight(native, name: str, n: int, k: int, seed: int = 0):
    """A PackedWeight of the module ``native``."""
    if name in BLOCKS:
        return native.PackedWeight.from_blocks(name, random_blocks(name, n, k, seed), n, k)
    if name == "qoq":
        return native.PackedWeight.from_blocks(name, random_qoq(n, k, seed), n, k)
    values = np.random.default_rng(seed).standard_normal((n, k), dtype=np.float32)
    if name == "f16":
        return native.PackedWeight.from_blocks(name, values.astype(np.float16).view(np.uint8), n, k)
    if name == "w4a4_mixed":
        header = mixed_header_of(k)
        return native.PackedWeight.from_blocks(name, w4a4_mixed.encode_rows(values, header), n, k, header=header)
    if name in SYMMETRIC:
        return native.PackedWeight.from_blocks(name, weights.get(name).encode(values), n, k)
    if name == "w4a16":
        return native.PackedWeight.from_blocks(name, w4a16.FORMAT.encode(values), n, k)
    if name == "bitstack":
        header, raw = bitstack.stacked(values, blocks=3, rank=1 + seed % 16)
        return native.PackedWeight.from_blocks(name, raw, n, k, header=header)
    return native.PackedWeight.from_float(name, values)


def random_rows(m: int, k: int, seed: int = 1) -> NDArray[np.float32]:
    """Activations with a few large columns, as models have."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((m, k), dtype=np.float32)
    x[:, :: max(1, k // 3)] *= 20
    return x


def same_bits(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    """Equal shapes and equal bits (so that NaN equals NaN and 0 differs from -0)."""
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))
