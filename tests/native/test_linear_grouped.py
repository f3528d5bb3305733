"""Symmetric codes in groups of 64 inputs, 1 to 8 bits wide: tiles as the layouts say, products as documented."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_blocks import mixed_header_of, random_blocks, random_rows, same_bits

from kvern import _native
from kvern.formats import activations, group_codes, layout, weights
from kvern.formats.blocks import in_blocks
from kvern.formats.layout import local, spatial
from kvern.formats.weights import w4a4_mixed

BIPOLAR = tuple(f"bipolar{bits}" for bits in range(1, 9))
NAMES = ("w6", "w4a4_mixed", *BIPOLAR)
PAIRS = [(name, weights.get(name).activation) for name in NAMES] + [("w6", "int6 group 64")]
# weight = scale * (d * code + m)
PARTS = {"w6": (1, -31), "w4a4_mixed": (1, -8)} | {f"bipolar{b}": (2, 1 - (1 << b)) for b in range(1, 9)}
BITS = {"w6": 6, "w4a4_mixed": 4} | {f"bipolar{b}": b for b in range(1, 9)}


def file_rows(name: str, n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Header and rows of every bit pattern, scales of both signs."""
    size = weights.get(name).block_bytes
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (n * k // 64, size), dtype=np.uint8)
    raw[:, :2] = rng.uniform(-0.02, 0.02, len(raw)).astype(np.float16).view(np.uint8).reshape(-1, 2)
    header = mixed_header_of(k) if name == "w4a4_mixed" else np.empty(0, np.uint8)
    return header, raw.reshape(n, -1)


def codes_of(name: str, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 codes [n, K] as they stand in the rows, and float16 scales [n, K / 64]."""
    bits = BITS[name]
    planes = group_codes.single_bits(bits) if name in BIPOLAR else layout.plane_widths(bits)
    codes, scales = group_codes.unpack_rows(in_blocks(raw, weights.get(name).block_bytes), planes)
    return codes.astype(np.uint8).reshape(len(raw), -1), scales.astype(np.float16).reshape(len(raw), -1)


def expected_tiles(name: str, raw: np.ndarray) -> np.ndarray:
    """Packed tiles as ``kvern.formats.layout`` describes them: uint8 [tiles, bytes]."""
    bits, (codes, scales) = BITS[name], codes_of(name, raw)
    short = -len(codes) % 16
    codes, scales = np.pad(codes, ((0, short), (0, 0))), np.pad(scales, ((0, short), (0, 0)))
    tiles, groups = len(codes) // 16, codes.shape[1] // 64
    blocks = codes.reshape(tiles, 16, groups, 2, 32).transpose(0, 2, 3, 1, 4)
    packed = layout.pack_tile_block(np.ascontiguousarray(blocks), bits).reshape(tiles, groups, -1)
    halves = np.ascontiguousarray(scales.reshape(tiles, 16, groups).transpose(0, 2, 1)).view(np.uint8)
    return np.concatenate([halves, packed], axis=2).reshape(tiles, -1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "k"), [(16, 64), (37, 192), (1, 128)])
def test_tiles_are_what_the_layout_says(name: str, n: int, k: int) -> None:
    header, raw = file_rows(name, n, k)
    packed = _native.PackedWeight.from_blocks(name, raw, n, k, header=header)
    np.testing.assert_array_equal(packed.tiles(), expected_tiles(name, raw))
    np.testing.assert_array_equal(
        packed.rows(np.arange(n, dtype=np.int32)), weights.get(name).decode(raw, n, k, header)
    )


def test_tiles_of_older_formats_are_layouts_too() -> None:
    """The nibbles of q4_0 are a plane of 4 bits, the bytes of w8a8 are in VNNI order."""
    raw = random_blocks("q4_0", 16, 32)
    nibbles = np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], axis=1)
    tile = _native.PackedWeight.from_blocks("q4_0", raw, 16, 32).tiles()[0]
    np.testing.assert_array_equal(tile[32:], layout.pack(nibbles, 4, layout.tile_plane(4)))
    values = np.random.default_rng(0).integers(-127, 128, (16, 64)).astype(np.float32)
    values[:, 0] = 127
    tile = _native.PackedWeight.from_float("w8a8", values).tiles()[0]
    vnni = spatial(1, 16) * spatial(16, 1) * spatial(1, 4)
    np.testing.assert_array_equal(tile[64:], layout.pack((values + 128).astype(np.uint8), 8, vnni))
    assert vnni / spatial(1, 4) == spatial(1, 16) * spatial(16, 1)
    assert spatial(1, 2) * layout.tile_plane(8) == vnni * local(1, 1)


def folded(name: str, raw: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The documented float order in NumPy; float64 stands in for fma, exact before its one rounding. ``codes`` int
    [R, groups, 64] of the inputs and their float32 ``scales`` [R, groups]."""
    weight_codes, weight_scales = codes_of(name, raw)
    d, m = (np.float32(part) * weight_scales.astype(np.float32) for part in PARTS[name])
    acc = np.zeros((len(codes), len(raw)), np.float32)
    for g in range(scales.shape[1]):
        a = codes[:, g].astype(np.int64)
        dot = (a @ weight_codes[:, 64 * g : 64 * g + 64].astype(np.int64).T).astype(np.float32)
        step = scales[:, g, None] * d[:, g][None]
        acc = (dot.astype(np.float64) * step + acc).astype(np.float32)
        sums = scales[:, g] * a.sum(axis=1).astype(np.float32)
        acc = (sums[:, None].astype(np.float64) * m[:, g][None] + acc).astype(np.float32)
    return acc


@pytest.mark.parametrize(("name", "activation"), PAIRS)
def test_groups_fold_in_the_documented_order(name: str, activation: str) -> None:
    n, k = 21, 320
    header, raw = file_rows(name, n, k)
    weight, x = _native.PackedWeight.from_blocks(name, raw, n, k, header=header), random_rows(9, k)
    tops: np.ndarray | float = 31.0 if activation == "int6 group 64" else 127.0
    seen = x
    if header.size:
        order, wide = header[: 4 * k].view("<i4"), header[4 * k :]
        seen, tops = np.ascontiguousarray(x[:, order]), np.where(wide, np.float32(127), np.float32(7))
    groups = group_codes.in_groups(seen)
    scales, inverses = group_codes.scales_of(groups, tops)
    codes = np.rint(groups * inverses[..., None]).astype(np.int32)
    for isa in _native.available_isas():
        y = _native.linear(x, weight, isa=isa, activation=activation)
        assert same_bits(y, folded(name, raw, codes, scales)), isa


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(PAIRS), st.integers(1, 40), st.integers(1, 50), st.integers(1, 4), st.integers(0, 9999))
def test_products_are_those_of_the_reference_in_the_same_bits_everywhere(pair, m, n, groups, seed) -> None:
    (name, activation), k = pair, 64 * groups
    header, raw = file_rows(name, n, k, seed)
    weight, x = _native.PackedWeight.from_blocks(name, raw, n, k, header=header), random_rows(m, k, seed)
    seen = activations.get(activation).rounded(x, header).astype(np.float64)
    matrix = weights.get(name).decode(raw, n, k, header).astype(np.float64)
    y = _native.linear(x, weight, activation=activation)
    bound = np.abs(seen) @ np.abs(matrix).T + np.abs(seen).sum(axis=1)[:, None] * np.abs(matrix).max() + 1e-30
    assert (np.abs(y - seen @ matrix.T) <= bound * 2.0**-20).all()
    one_by_one = [_native.linear(x[i : i + 1], weight, activation=activation, threads=2) for i in range(m)]
    assert same_bits(np.concatenate(one_by_one), y)
    for isa in _native.available_isas():
        assert same_bits(_native.linear(x, weight, isa=isa, activation=activation), y), isa


@pytest.mark.parametrize(("name", "activation"), PAIRS)
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_codes_do_not_saturate(name: str, activation: str, sign: int) -> None:
    """All bits set and all inputs at their largest: int16 sums must not be carried too far."""
    k = 256
    raw = np.full((16 * k // 64, weights.get(name).block_bytes), 255, np.uint8)
    raw[:, :2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    header = mixed_header_of(k) if name == "w4a4_mixed" else np.empty(0, np.uint8)
    weight = _native.PackedWeight.from_blocks(name, raw.reshape(16, -1), 16, k, header=header)
    d, m = PARTS[name]
    value = float(d * ((1 << BITS[name]) - 1) + m)
    for isa in _native.available_isas():
        y = _native.linear(np.full((5, k), sign * 127, np.float32), weight, isa=isa, activation=activation)
        np.testing.assert_allclose(y, sign * 127 * k * value, rtol=1e-6)


@pytest.mark.parametrize("activation", ["int8 group 64", "int6 group 64"])
@pytest.mark.parametrize("k", [64, 100, 640])
def test_encoded_groups_equal_the_reference(activation: str, k: int) -> None:
    x = random_rows(6, k)
    x[1] = 0
    x[2, 3], x[3, 7] = np.nan, np.inf
    top = 31 if "6 g" in activation else 127
    groups = group_codes.in_groups(x)
    scales, inverses = group_codes.scales_of(groups, top)
    with np.errstate(invalid="ignore"):
        codes = np.nan_to_num(np.rint(groups * inverses[..., None])).astype(np.int8)
    for isa in _native.available_isas():
        rows = _native.quantize_rows(x, activation, isa=isa)
        np.testing.assert_array_equal(rows["codes"].reshape(6, -1), codes.reshape(6, -1)[:, :k])
        np.testing.assert_array_equal(rows["scales"], scales)
        np.testing.assert_array_equal(rows["sums"], codes.sum(axis=-1, dtype=np.int32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("name", "activation"), PAIRS)
def test_a_row_that_is_not_finite_shows_in_its_outputs_alone(name: str, activation: str, bad: float) -> None:
    header, raw = file_rows(name, 20, 128)
    weight, x = _native.PackedWeight.from_blocks(name, raw, 20, 128, header=header), random_rows(4, 128)
    clean = _native.linear(x, weight, activation=activation)
    x[2, 100] = bad
    for isa in _native.available_isas():
        y = _native.linear(x, weight, isa=isa, activation=activation)
        assert np.isnan(y[2]).all()
        assert same_bits(np.delete(y, 2, 0), np.delete(clean, 2, 0))


def test_mixed_headers_that_do_not_fit_are_refused() -> None:
    header, raw = file_rows("w4a4_mixed", 16, 128)

    def made(bad: np.ndarray) -> _native.PackedWeight:
        return _native.PackedWeight.from_blocks("w4a4_mixed", raw, 16, 128, header=bad)

    assert made(header).n == 16
    twice, outside, flag = header.copy(), header.copy(), header.copy()
    twice[:4] = twice[4:8]
    outside[3] = 0x80
    flag[-1] = 2
    for bad, message in ((twice, "permutation"), (outside, "permutation"), (flag, "neither"), (header[:-1], "bytes")):
        with pytest.raises(ValueError, match=message):
            made(bad)
    with pytest.raises(ValueError, match="bytes"):
        _native.PackedWeight.from_blocks("w4a4_mixed", raw, 16, 128)
    with pytest.raises(ValueError, match="no header"):
        _native.PackedWeight.from_blocks("w6", file_rows("w6", 16, 128)[1], 16, 128, header=header)
    with pytest.raises(ValueError, match="multiple of 64"):
        _native.PackedWeight.from_blocks("w6", np.zeros(16 * 75, np.uint8), 16, 96)


def test_a_permuted_matrix_is_the_same_matrix() -> None:
    values = np.random.default_rng(3).standard_normal((12, 192), dtype=np.float32)
    header = mixed_header_of(192)
    raw = w4a4_mixed.encode_rows(values, header)
    decoded = w4a4_mixed.FORMAT.decode(raw, 12, 192, header)
    assert np.abs(decoded - values).max() < 0.5
    assert np.abs(decoded - values[:, header[:768].view("<i4")]).max() > 2  # the order matters


def test_served_pairs() -> None:
    for name in NAMES:
        for activation in weights.get(name).activations:
            assert _native.linear_served(name, activation), (name, activation)
    assert not _native.linear_served("w6", "int8 row")
    assert not _native.linear_served("bipolar5", "bit planes")
    weight = _native.PackedWeight.from_blocks("w6", file_rows("w6", 16, 64)[1], 16, 64)
    with pytest.raises(ValueError, match="w6 weights are not served with mixed 4/8"):
        _native.linear(np.zeros((1, 64), np.float32), weight, activation="mixed 4/8")
