"""Pieces that several block formats share: fields of a block, half floats, bits packed in bytes, nearest codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def in_blocks(data: Bytes, block_bytes: int) -> Bytes:
    """uint8 [rows, row bytes] -> uint8 [blocks, block bytes], rows one after the other."""
    return data.reshape(-1, block_bytes)


def half(block: Bytes, at: int) -> Floats:
    """The half float at byte ``at`` of every block, as float32 [blocks, 1]."""
    return np.ascontiguousarray(block[:, at : at + 2]).view("<f2").astype(np.float32)


def half_bytes(values: Floats) -> Bytes:
    """float32 [blocks, 1] -> uint8 [blocks, 2], rounded to half floats."""
    return values.astype("<f2").view(np.uint8)


def nibbles(packed: Bytes) -> Bytes:
    """uint8 [blocks, 16] -> codes [blocks, 32]: the low halves of all bytes, then the high halves."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def pack_nibbles(codes: Bytes) -> Bytes:
    """The inverse of ``nibbles``."""
    return codes[:, :16] | codes[:, 16:] << np.uint8(4)


def fifth_bits(packed: Bytes) -> Bytes:
    """uint8 [blocks, 4] -> bits [blocks, 32], bit i of the little-endian word belonging to code i."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def pack_fifth_bits(codes: Bytes) -> Bytes:
    """Bit 4 of codes [blocks, 32] -> uint8 [blocks, 4]."""
    return np.packbits(codes >> 4, axis=1, bitorder="little")


def nearest(values: Floats, step: Floats, low: int, high: int) -> NDArray[np.int32]:
    """Codes ``values / step`` rounded to nearest even and clamped; 0 where the step is 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        codes = np.where(step == 0, np.float32(0), values / step)
    return np.clip(np.rint(codes), low, high).astype(np.int32)


def symmetric_step(values: Floats, codes: int) -> Floats:
    """Step such that the value of largest magnitude in each row lands on code ``-codes``: float32 [rows, 1]."""
    at = np.abs(values).argmax(axis=1)[:, None]
    return (np.take_along_axis(values, at, axis=1) / np.float32(-codes)).astype(np.float32)


def asymmetric_step(values: Floats, codes: int) -> tuple[Floats, Floats]:
    """Step and minimum such that ``[min, max]`` of each row is spread over codes ``0..codes``: float32 [rows, 1]."""
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    return ((high - low) / np.float32(codes)).astype(np.float32), low
