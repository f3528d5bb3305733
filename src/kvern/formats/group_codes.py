"""Groups of 64 columns: inputs and weights brought to symmetric codes with one scale a group.

Inputs: scale = max|x| / top in float32; code = x * (top / max|x|) rounded to nearest even, within +-top. A group that
holds a value that is not finite gets a NaN scale and zero codes. The last group is filled up with zeros.

Rows of weights: for each group the scale as a half float, then the codes as planes of bits (``layout.plane_widths``,
or single bits), each ``local(1, 64)``: column i at bit i * width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.formats import layout
from kvern.formats.blocks import Bytes, Floats, half, half_bytes

GROUP = 64
Planes = tuple[tuple[int, int], ...]  # (width, lowest bit)


def in_groups(x: Floats) -> Floats:
    """float32 [R, K] -> [R, ceil(K / 64), 64], filled up with zeros."""
    short = -x.shape[-1] % GROUP
    return np.pad(x, ((0, 0), (0, short))).reshape(x.shape[0], -1, GROUP)


def scales_of(groups: Floats, top: Floats | float) -> tuple[Floats, Floats]:
    """float32 [R, G, 64] and the largest code (of each group: [G]) -> scales and their inverses, float32 [R, G];
    inverses are 0 where codes are to be 0."""
    largest = np.where(np.isfinite(groups).all(axis=-1), np.abs(groups).max(axis=-1), np.float32(np.nan))
    tops = np.broadcast_to(np.asarray(top, np.float32), largest.shape)
    scales = (largest / tops).astype(np.float32)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverses = np.where(scales > 0, tops / largest.astype(np.float32), np.float32(0))
    return scales, inverses.astype(np.float32)


def rounded(x: Floats, top: Floats | float) -> Floats:
    """What a product sees of float32 rows [R, K] after codes within +-top in groups of 64: float32 [R, K]."""
    groups = in_groups(x)
    scales, inverses = scales_of(groups, top)
    limit = np.broadcast_to(np.asarray(top, np.float32), scales.shape)[..., None]
    with np.errstate(invalid="ignore", over="ignore"):
        codes = np.nan_to_num(np.clip(np.rint(groups * inverses[..., None]), -limit, limit), nan=0.0)
    seen: Floats = (codes * scales[..., None]).reshape(x.shape[0], -1)
    return np.ascontiguousarray(seen[:, : x.shape[1]])


def single_bits(bits: int) -> Planes:
    return tuple((1, low) for low in range(bits))


def pack_rows(codes: Bytes, scales: Floats, planes: Planes) -> Bytes:
    """uint8 codes [blocks, 64] and float32 scales [blocks, 1] -> uint8 [blocks, bytes of a block]."""
    row = layout.local(1, GROUP)
    packed = [layout.pack((codes >> np.uint8(low))[:, None], width, row) for width, low in planes]
    return np.concatenate([half_bytes(scales), *packed], axis=1)


def unpack_rows(block: Bytes, planes: Planes) -> tuple[NDArray[np.int16], Floats]:
    """The inverse of ``pack_rows``: codes int16 [blocks, 64], scales float32 [blocks, 1]."""
    row, at = layout.local(1, GROUP), 2
    codes = np.zeros((block.shape[0], GROUP), np.int16)
    for width, low in planes:
        end = at + GROUP * width // 8
        part = layout.unpack(np.ascontiguousarray(block[:, at:end]), width, row)[:, 0]
        codes |= part.astype(np.int16) << np.int16(low)
        at = end
    return codes, half(block, 0)


def block_bytes(bits: int) -> int:
    return 2 + GROUP * bits // 8
