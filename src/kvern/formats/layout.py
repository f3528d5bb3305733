"""How elements narrower than a byte lie in memory: element types and an algebra of layouts (Tilus, sections 4 and 5).

A layout maps an element (row, column) of a rectangle to a unit of memory and a slot in it; a slot is as many bits
wide as the element type, and units are strings of bits one after the other. ``local(a, b)`` puts a x b elements into
the slots of one unit, ``spatial(a, b)`` spreads them over units, and ``x * y`` nests: each element of ``x`` is a
rectangle of ``y``, so shapes multiply and the outer index picks the block. ``x / y`` finds the ``z`` with
``z * y == x``.

Packed tiles of the native kernels are such layouts; native/include/code_layout.h is the same algebra at compile time.
Rows are outputs there, columns inputs, units bytes:

    byte codes        spatial(1, 8) * spatial(16, 1) * spatial(1, 4)                    of 32 inputs (VNNI order)
    plane of w bits   local(1, 8 / w) * spatial(1, w) * spatial(16, 1) * spatial(1, 4)  of 32 inputs
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ElementType:
    """uint1 to uint8, int2 to int8 (two's complement), float3 to float8 with a sign, ``exponent`` and ``mantissa``
    bits (all codes finite; subnormal numbers at exponent 0). Codes are uint8 of ``bits`` bits."""

    kind: Literal["uint", "int", "float"]
    bits: int
    exponent: int = 0
    mantissa: int = 0

    def __post_init__(self) -> None:
        fewest = {"uint": 1, "int": 2, "float": 3}[self.kind]
        if not fewest <= self.bits <= 8:
            raise ValueError(f"{self.kind}{self.bits}: widths are {fewest} to 8 bits")
        if self.kind == "float" and (self.exponent < 1 or 1 + self.exponent + self.mantissa != self.bits):
            raise ValueError(
                f"float{self.bits}: {self.exponent} exponent and {self.mantissa} mantissa bits do not fit"
            )

    def values(self) -> NDArray[np.float64]:
        """The number each code stands for: float64 [2 ** bits]."""
        codes = np.arange(1 << self.bits)
        if self.kind == "uint":
            return codes.astype(np.float64)
        sign = codes >> (self.bits - 1)
        if self.kind == "int":
            return (codes - (sign << self.bits)).astype(np.float64)
        fraction = (codes & ((1 << self.mantissa) - 1)) / (1 << self.mantissa)
        exponent = codes >> self.mantissa & ((1 << self.exponent) - 1)
        bias = (1 << (self.exponent - 1)) - 1
        size = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
        return np.where(sign == 1, -size, size)

    def decode(self, codes: Codes) -> NDArray[np.float32]:
        """float32 of the shape of ``codes``: exact, as all these numbers are float32 too."""
        return self.values().astype(np.float32)[codes]

    def encode(self, values: NDArray[np.float32]) -> Codes:
        """The nearest code of each number, the one of smaller magnitude on a tie; uint8 of the same shape."""
        known, first = np.unique(self.values(), return_index=True)
        above = np.searchsorted(known, values).clip(1, len(known) - 1)
        low, high = known[above - 1], known[above]
        nearer_high = (high - values < values - low) | (
            (high - values == values - low) & (np.abs(high) < np.abs(low))
        )
        found: Codes = first[np.where(nearer_high, above, above - 1)].astype(np.uint8)
        return found


def uint(bits: int) -> ElementType:
    return ElementType("uint", bits)


@dataclass(frozen=True, slots=True)
class Mode:
    """``size`` blocks side by side along ``axis`` (0: rows, 1: columns), in units of their own or in one unit."""

    spatial: bool
    axis: int
    size: int

    def like(self, other: Mode) -> bool:
        return self.spatial == other.spatial and self.axis == other.axis

    def commutes(self, other: Mode) -> bool:
        """Whether nesting the one in the other is the same map as the other way round."""
        return self.spatial != other.spatial and self.axis != other.axis


@dataclass(frozen=True)
class Layout:
    """``modes`` from the outermost to the innermost."""

    modes: tuple[Mode, ...] = ()

    def __mul__(self, inner: Layout) -> Layout:
        return Layout(self.modes + inner.modes)

    def __truediv__(self, inner: Layout) -> Layout:
        """The outer factor; raises ValueError where ``inner`` does not divide this layout."""
        modes = [mode for mode in self.modes if mode.size > 1]
        for wanted in reversed([mode for mode in inner.modes if mode.size > 1]):
            _take_innermost(modes, wanted, self, inner)
        return Layout(tuple(modes))

    def __eq__(self, other: object) -> bool:
        """The same map, however written."""
        if not isinstance(other, Layout) or self.shape != other.shape:
            return False
        return all(np.array_equal(a, b) for a, b in zip(self.places, other.places, strict=True))

    def __hash__(self) -> int:
        return hash((self.shape, self.units))

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = (prod(mode.size for mode in self.modes if mode.axis == axis) for axis in (0, 1))
        return rows, columns

    @property
    def units(self) -> int:
        return prod(mode.size for mode in self.modes if mode.spatial)

    @property
    def slots(self) -> int:
        """Elements of one unit."""
        return prod(mode.size for mode in self.modes if not mode.spatial)

    @cached_property
    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Unit and slot of every element: int64 [rows, columns] each."""
        left = list(np.indices(self.shape))
        found = {True: np.zeros(self.shape, np.int64), False: np.zeros(self.shape, np.int64)}
        steps = {True: 1, False: 1}
        for mode in reversed(self.modes):
            left[mode.axis], part = np.divmod(left[mode.axis], mode.size)
            found[mode.spatial] += part * steps[mode.spatial]
            steps[mode.spatial] *= mode.size
        return found[True], found[False]


def _take_innermost(modes: list[Mode], wanted: Mode, whole: Layout, inner: Layout) -> None:
    """Remove ``wanted`` from the inner end of ``modes``, past what commutes with it."""
    rest = wanted.size
    for i in reversed(range(len(modes))):
        if modes[i].like(wanted):
            size = min(rest, modes[i].size)
            if rest % size or modes[i].size % size:
                break
            rest //= size
            modes[i] = Mode(wanted.spatial, wanted.axis, modes[i].size // size)
            if modes[i].size == 1:
                del modes[i]
            if rest == 1:
                return
        elif not modes[i].commutes(wanted):
            break
    raise ValueError(f"a layout of shape {whole.shape} is not divided by this one of shape {inner.shape}")


def local(rows: int, columns: int) -> Layout:
    """rows x columns elements in one unit, slots row by row."""
    return Layout((Mode(False, 0, rows), Mode(False, 1, columns)))


def spatial(rows: int, columns: int) -> Layout:
    """rows x columns units of one element, row by row."""
    return Layout((Mode(True, 0, rows), Mode(True, 1, columns)))


def reinterprets(a: Layout, a_bits: int, b: Layout, b_bits: int) -> bool:
    """Whether memory written in one layout may be read in the other as it stands: both have as many units, with the
    same number of bits in each (Tilus' free ``view``)."""
    return a.units == b.units and a.slots * a_bits == b.slots * b_bits


def bit_addresses(layout: Layout, bits: int) -> NDArray[np.int64]:
    """The first bit of every element: int64 [rows, columns]."""
    unit, slot = layout.places
    return (unit * layout.slots + slot) * bits


def packed_bytes(layout: Layout, bits: int) -> int:
    """Bytes of one packed rectangle, the last filled up with zero bits."""
    return (layout.units * layout.slots * bits + 7) // 8


def pack(codes: Codes, bits: int, layout: Layout) -> Codes:
    """uint8 codes [..., rows, columns] of ``bits`` bits -> uint8 [..., bytes]. Bits of a code above are ignored."""
    lead = codes.shape[:-2]
    order = np.argsort(bit_addresses(layout, bits), axis=None)
    ordered = codes.reshape(*lead, -1)[..., order] & np.uint8((1 << bits) - 1)
    if 8 % bits == 0 and ordered.shape[-1] * bits % 8 == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        together: Codes = np.bitwise_or.reduce(ordered.reshape(*lead, -1, 8 // bits) << shifts, axis=-1)
        return together
    single = np.unpackbits(ordered[..., None], axis=-1, count=bits, bitorder="little")
    return np.packbits(single.reshape(*lead, -1), axis=-1, bitorder="little")


def unpack(data: Codes, bits: int, layout: Layout) -> Codes:
    """The inverse of ``pack``: uint8 [..., bytes] -> uint8 codes [..., rows, columns]."""
    lead = data.shape[:-1]
    if data.shape[-1] != packed_bytes(layout, bits):
        raise ValueError(f"{data.shape[-1]} bytes are not the {packed_bytes(layout, bits)} of this layout")
    addresses = bit_addresses(layout, bits).ravel() // bits
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        ordered = (data[..., None] >> shifts & np.uint8((1 << bits) - 1)).reshape(*lead, -1)
    else:
        single = np.unpackbits(data, axis=-1, bitorder="little")[..., : addresses.size * bits]
        groups = single.reshape(*lead, -1, bits)
        ordered = np.packbits(groups, axis=-1, bitorder="little")[..., 0]
    found: Codes = ordered[..., addresses].reshape(*lead, *layout.shape)
    return found


def plane_widths(bits: int) -> tuple[tuple[int, int], ...]:
    """(width, lowest bit) of the planes that codes of ``bits`` bits are cut into: the binary digits of ``bits``, the
    widest with the lowest bits first (6: a plane of 4 bits, then one of 2)."""
    found, low = [], 0
    for width in (8, 4, 2, 1):
        if bits & width:
            found.append((width, low))
            low += width
    return tuple(found)


def tile_plane(width: int) -> Layout:
    """A plane of 16 outputs x 32 inputs in a packed tile; its units are bytes."""
    return local(1, 8 // width) * spatial(1, width) * spatial(16, 1) * spatial(1, 4)


def pack_tile_block(codes: Codes, bits: int) -> Codes:
    """uint8 codes [..., 16, 32] -> the planes of a packed tile, uint8 [..., 64 * bits]."""
    planes = [pack(codes >> np.uint8(low), width, tile_plane(width)) for width, low in plane_widths(bits)]
    return np.concatenate(planes, axis=-1)
