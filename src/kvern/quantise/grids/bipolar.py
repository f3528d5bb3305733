"""Rounding to BIPOLAR2 .. BIPOLAR8: odd numbers within +-(2 ** bits - 1) times the scale."""

from __future__ import annotations

from functools import partial

from kvern.formats import group_codes
from kvern.quantise.grid import Bytes, Codes, Floats, GridFormat
from kvern.quantise.grids.half_scaled import HalfScaled


def pack(codes: Codes, scales: Floats, planes: group_codes.Planes) -> Bytes:
    return group_codes.pack_rows(codes, scales, planes)


def grid(bits: int) -> GridFormat:
    top = (1 << bits) - 1
    packer = partial(pack, planes=group_codes.single_bits(bits))
    return HalfScaled(f"BIPOLAR{bits}", top, top, group_codes.GROUP, packer, spacing=2)
