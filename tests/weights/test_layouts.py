"""The layout algebra: nesting, division, and packing that comes back to the bit for every width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvern.formats import layout
from kvern.formats.layout import ElementType, Layout, local, spatial


def _product(factors: list[Layout]) -> Layout:
    whole = Layout()
    for factor in factors:
        whole = whole * factor
    return whole


SIDES = st.integers(1, 3)
FACTORS = st.builds(lambda make, a, b: make(a, b), st.sampled_from([local, spatial]), SIDES, SIDES)
LAYOUTS = st.lists(FACTORS, min_size=1, max_size=2).map(_product)
FLOATS = [ElementType("float", bits, e, bits - 1 - e) for bits in range(3, 9) for e in range(1, bits)]
TYPES = [ElementType("uint", b) for b in range(1, 9)] + [ElementType("int", b) for b in range(2, 9)] + FLOATS


@settings(deadline=None)
@given(LAYOUTS)
def test_every_slot_of_every_unit_holds_one_element(whole: Layout) -> None:
    unit, slot = whole.places
    assert unit.shape == slot.shape == whole.shape
    assert sorted((unit * whole.slots + slot).ravel().tolist()) == list(range(whole.units * whole.slots))


@settings(deadline=None)
@given(LAYOUTS, LAYOUTS)
def test_a_product_nests(outer: Layout, inner: Layout) -> None:
    """Shapes multiply, the outer index picks the block, and places are those of the block and within it."""
    whole = outer * inner
    assert whole.shape == tuple(a * b for a, b in zip(outer.shape, inner.shape, strict=True))
    for ours, outside, inside, size in zip(
        whole.places, outer.places, inner.places, (inner.units, inner.slots), strict=True
    ):
        np.testing.assert_array_equal(
            ours, np.kron(outside, np.full(inner.shape, size)) + np.tile(inside, outer.shape)
        )


@settings(deadline=None)
@given(LAYOUTS, LAYOUTS)
def test_division_undoes_a_product(outer: Layout, inner: Layout) -> None:
    assert (outer * inner) / inner == outer
    assert ((outer * inner) / inner) * inner == outer * inner


@settings(deadline=None)
@given(LAYOUTS, LAYOUTS)
def test_what_division_finds_multiplies_back(whole: Layout, inner: Layout) -> None:
    try:
        outer = whole / inner
    except ValueError:
        return
    assert outer * inner == whole


def test_layouts_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="not divided"):
        spatial(4, 1) / spatial(3, 1)
    with pytest.raises(ValueError, match="not divided"):
        spatial(4, 4) / local(2, 2)
    with pytest.raises(ValueError, match="not divided"):
        (local(2, 1) * local(1, 2)) / local(2, 1)  # columns are innermost here
    assert (local(1, 2) * spatial(16, 1)) / local(1, 2) == spatial(16, 1)  # these two commute
    assert spatial(4, 6) / spatial(1, 3) == spatial(4, 2)


@pytest.mark.parametrize("kind", TYPES, ids=lambda t: f"{t.kind}{t.bits}e{t.exponent}m{t.mantissa}")
def test_every_type_of_every_width_packs_and_comes_back(kind: ElementType) -> None:
    codes = np.random.default_rng(kind.bits).integers(0, 1 << kind.bits, (3, 16, 32), dtype=np.uint8)
    shapes = (
        local(16, 32), spatial(16, 32), spatial(1, 8) * spatial(16, 1) * local(1, 4),
        local(2, 2) * spatial(8, 1) * local(1, 4) * spatial(1, 4),
    )  # fmt: skip
    for shape in shapes:
        packed = layout.pack(codes, kind.bits, shape)
        assert packed.shape == (3, layout.packed_bytes(shape, kind.bits)) == (3, 64 * kind.bits)
        back = layout.unpack(packed, kind.bits, shape)
        np.testing.assert_array_equal(back, codes)
    decoded = kind.decode(codes)
    np.testing.assert_array_equal(kind.decode(kind.encode(decoded)), decoded)
    if kind.kind != "float":  # which has two codes for zero
        np.testing.assert_array_equal(kind.encode(decoded), codes)


@settings(deadline=None)
@given(st.integers(1, 8), LAYOUTS, st.integers(0, 999))
def test_bits_lie_where_the_layout_says(bits: int, whole: Layout, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 256, whole.shape, dtype=np.uint8)
    stream = np.unpackbits(layout.pack(codes, bits, whole), bitorder="little")
    first = layout.bit_addresses(whole, bits)
    for bit in range(bits):
        np.testing.assert_array_equal(stream[first + bit], codes >> bit & 1)


@pytest.mark.parametrize("kind", TYPES, ids=lambda t: f"{t.kind}{t.bits}e{t.exponent}m{t.mantissa}")
def test_numbers_go_to_the_nearest_code(kind: ElementType) -> None:
    x = np.random.default_rng(0).standard_normal(500).astype(np.float32) * 4
    distance = np.abs(kind.values()[None] - x[:, None].astype(np.float64))
    chosen = np.abs(kind.decode(kind.encode(x)).astype(np.float64) - x)
    np.testing.assert_array_equal(chosen, distance.min(axis=1))


def test_values_of_known_types() -> None:
    assert ElementType("int", 3).values().tolist() == [0, 1, 2, 3, -4, -3, -2, -1]
    e2m1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]  # FP4 as in OCP MX
    assert ElementType("float", 4, 2, 1).values().tolist() == [*e2m1, *(-v for v in e2m1)]
    assert ElementType("float", 6, 3, 2).values().max() == 28  # FP6 E3M2


def test_widths_that_do_not_exist_are_refused() -> None:
    for kind, bits in (("uint", 0), ("uint", 9), ("int", 1), ("float", 2)):
        with pytest.raises(ValueError, match="bits"):
            ElementType(kind, bits)
    with pytest.raises(ValueError, match="do not fit"):
        ElementType("float", 6, 3, 3)
    with pytest.raises(ValueError, match="bytes are not"):
        layout.unpack(np.zeros(5, np.uint8), 3, local(1, 8))


def test_a_view_is_free_where_units_keep_their_bits() -> None:
    """Tilus' example: 6-bit weights loaded as bytes, viewed in the layout of the product."""
    as_bytes, as_sixes = spatial(8, 4) * local(1, 3), spatial(8, 4) * local(1, 4)
    assert layout.reinterprets(as_bytes, 8, as_sixes, 6)
    assert not layout.reinterprets(as_bytes, 8, spatial(8, 4) * local(1, 3), 6)
    assert not layout.reinterprets(as_bytes, 8, spatial(4, 4) * local(2, 4), 6)
    raw = np.random.default_rng(1).integers(0, 256, (1, 96), dtype=np.uint8)
    sixes = layout.unpack(raw, 6, as_sixes)
    np.testing.assert_array_equal(layout.pack(sixes, 6, as_sixes), raw)
    for width in (1, 2, 4, 8):  # planes of a tile are bytes to a load
        assert layout.reinterprets(layout.tile_plane(width), width, spatial(width, 64), 8)


def test_planes_are_the_binary_digits_of_a_width() -> None:
    assert layout.plane_widths(6) == ((4, 0), (2, 4))
    assert layout.plane_widths(7) == ((4, 0), (2, 4), (1, 6))
    for bits in range(1, 9):
        assert sum(width for width, _ in layout.plane_widths(bits)) == bits
