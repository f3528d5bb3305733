"""Bipolar numbers ("bipolar-INT"): every bit of a code counts + or - its place, so value = 2 * code - (2^bits - 1).

These are the odd numbers within +-(2^bits - 1): symmetric, and products of two codes are sums of xor and popcount
over their bit planes. Weights: for each 64 columns a half float s, then ``bits`` planes of single bits; weight =
s * value. Inputs: one float32 scale a group of 64, scale = max|x| / (2^bits - 1).
"""

from __future__ import annotations

import numpy as np

from kvern.formats import group_codes
from kvern.formats.activation_format import ActivationFormat
from kvern.formats.blocks import Bytes, Floats, half, half_bytes, in_blocks
from kvern.formats.weight_format import WeightFormat

PLANE_PRODUCTS = ("bit planes", "bit planes 1", "bit planes 3", "bit planes 4")
WIDEST_PLANE_PRODUCT = 4  # bits of a weight that the bit-plane kernels take


def weight_format(bits: int) -> WeightFormat:
    """The format "BIPOLAR<bits>"; 1 to 8 bits."""
    top, planes, size = (1 << bits) - 1, group_codes.single_bits(bits), group_codes.block_bytes(bits)

    def decode(data: Bytes, columns: int) -> Floats:
        codes, scales = group_codes.unpack_rows(in_blocks(data, size), planes)
        return scales * (2 * codes - np.int16(top)).astype(np.float32)

    def encode(values: Floats) -> Bytes:
        block = values.reshape(-1, group_codes.GROUP)
        scales = half(half_bytes(steps_of(block, bits)), 0)
        return group_codes.pack_rows(nearest_codes(block, scales, bits), scales, planes)

    forms = ("int8 group 64", *(PLANE_PRODUCTS if bits <= WIDEST_PLANE_PRODUCT else ()), "float32")
    return WeightFormat(f"BIPOLAR{bits}", group_codes.GROUP, size, forms, decode, encode)


def steps_of(block: Floats, bits: int) -> Floats:
    """Scales of weights: float32 [blocks, 1]. The mean magnitude for one bit, which then loses least; else the
    largest number lands on the outermost code."""
    size = np.abs(block)
    if bits == 1:
        mean: Floats = size.mean(axis=1, keepdims=True, dtype=np.float32)
        return mean
    largest: Floats = size.max(axis=1, keepdims=True) / np.float32((1 << bits) - 1)
    return largest


def nearest_codes(block: Floats, scales: Floats, bits: int) -> Bytes:
    """uint8 codes [blocks, 64] whose values times ``scales`` are nearest."""
    top = np.float32((1 << bits) - 1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        codes = np.rint((np.where(scales == 0, np.float32(0), block / scales) + top) * np.float32(0.5))
    found: Bytes = codes.clip(0, top).astype(np.uint8)
    return found


def activation_format(name: str, bits: int) -> ActivationFormat:
    top = float((1 << bits) - 1)

    def rounded(x: Floats, header: Bytes) -> Floats:
        groups = group_codes.in_groups(x)
        scales, inverses = group_codes.scales_of(groups, top)
        with np.errstate(invalid="ignore", over="ignore"):
            codes = np.rint((groups * inverses[..., None] + np.float32(top)) * np.float32(0.5)).clip(0, top)
            seen: Floats = (np.float32(2) * codes - np.float32(top)) * scales[..., None]
        return np.ascontiguousarray(seen.reshape(x.shape[0], -1)[:, : x.shape[1]])

    return ActivationFormat(name, bits, rounded)
