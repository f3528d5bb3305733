"""Packed weights: nothing of the file's numbers is lost, sizes hold, and damaged input is refused."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_blocks import BLOCKS, FORMATS, block_of, random_blocks, random_weight, same_bits

from kvern import _native
from kvern.formats import weights as weight_formats

PackedWeight = _native.PackedWeight


def all_rows(weight) -> np.ndarray:
    return weight.rows(np.arange(weight.n, dtype=np.int32))


@pytest.mark.peers
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(("n", "k"), [(1, 256), (16, 512), (37, 768)])
def test_rows_equal_those_of_gguf(name, n, k):
    gguf = pytest.importorskip("gguf")
    raw = random_blocks(name, n, k)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name.upper()]).reshape(n, k)
    assert np.array_equal(all_rows(PackedWeight.from_blocks(name, raw, n, k)), expected)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(BLOCKS)), st.integers(1, 50), st.integers(1, 4), st.integers(0, 9999))
def test_rows_equal_the_reference_decoder(name, n, blocks, seed):
    k = blocks * block_of(name)
    raw = random_blocks(name, n, k, seed)
    expected = weight_formats.get(name.upper()).decode_rows(raw, k).reshape(n, k)
    assert np.array_equal(all_rows(PackedWeight.from_blocks(name, raw, n, k)), expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_size_is_within_six_percent_of_the_file(name):
    raw = random_blocks(name, 32, 512)
    assert PackedWeight.from_blocks(name, raw, 32, 512).nbytes <= 1.06 * raw.size


@pytest.mark.parametrize("name", BLOCKS)
def test_a_permutation_reorders_outputs(name):
    raw = random_blocks(name, 40, 256)
    order = np.random.default_rng(3).permutation(40).astype(np.int32)[:37]
    plain = PackedWeight.from_blocks(name, raw, 40, 256)
    mixed = PackedWeight.from_blocks(name, raw, 37, 256, rows=order)
    assert same_bits(all_rows(mixed), plain.rows(order))


@pytest.mark.parametrize("k", [1, 2, 7, 31, 33, 100])
def test_plain_numbers_are_kept(k):
    values = np.random.default_rng(k).standard_normal((19, k), dtype=np.float32)
    halves = values.astype(np.float16)
    assert same_bits(all_rows(PackedWeight.from_float("f32", values)), values)
    assert same_bits(
        all_rows(PackedWeight.from_blocks("F16", halves.view(np.uint8), 19, k)), halves.astype(np.float32)
    )
    bits = values.view(np.uint32)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    assert same_bits(all_rows(PackedWeight.from_float("bf16", values)), nearest)
    raw = np.ascontiguousarray((nearest.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8)
    assert same_bits(all_rows(PackedWeight.from_blocks("BF16", raw, 19, k)), nearest)


@pytest.mark.parametrize("k", [1, 5, 64, 100])
def test_w8a8_equals_the_reference(k):
    values = np.random.default_rng(k).standard_normal((21, k), dtype=np.float32)
    values[3] = 0
    reference = weight_formats.get("W8A8")
    expected = reference.decode_rows(reference.encode_rows(values), k)
    assert np.array_equal(all_rows(PackedWeight.from_float("w8a8", values)), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_one_row_and_properties(name):
    weight = random_weight(_native, name, 18, 256)
    assert (weight.n, weight.k, weight.format) == (18, 256, name)
    assert same_bits(weight.row(17), weight.rows(np.array([3, 17], dtype=np.int32))[1])


@pytest.mark.parametrize("row", [-1, 18, 1 << 40])
def test_a_row_outside_is_refused(row):
    weight = random_weight(_native, "q4_0", 18, 64)
    with pytest.raises(IndexError, match="not in the weight"):
        weight.row(row)
    if abs(row) < 1 << 31:
        with pytest.raises(IndexError, match="not in the weight"):
            weight.rows(np.array([0, row], dtype=np.int32))


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(
    ("n", "k", "short"),
    [(4, 256, 1), (4, 256, -1), (0, 256, 0), (-4, 256, 0), (4, 0, 0), (4, 250, 0), (1 << 40, 256, 0)],
)
def test_wrong_sizes_are_refused(name, n, k, short):
    raw = random_blocks(name, 4, 256).ravel()
    data = raw[: raw.size - short] if short >= 0 else np.concatenate([raw, raw[:1]])
    with pytest.raises(ValueError, match=name):
        PackedWeight.from_blocks(name, np.ascontiguousarray(data), n, k)


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1])
def test_a_permutation_outside_the_file_is_refused(bad):
    rows = np.array([0, 1, bad, 2], dtype=np.int32)
    with pytest.raises(ValueError, match="permutation"):
        PackedWeight.from_blocks("q4_0", random_blocks("q4_0", 4, 32), 4, 32, rows=rows)


def test_other_refusals():
    raw = random_blocks("q4_0", 4, 32)
    with pytest.raises(ValueError, match="unknown weight format 'q3_k'"):
        PackedWeight.from_blocks("q3_k", raw, 4, 32)
    with pytest.raises(ValueError, match="whole rows of 36 bytes"):
        PackedWeight.from_blocks("w8a8", raw, 4, 32)
    with pytest.raises(ValueError, match="cannot be made"):
        PackedWeight.from_float("q4_0", np.zeros((4, 32), np.float32))
    with pytest.raises(ValueError, match="one row for each"):
        PackedWeight.from_blocks("q4_0", raw, 4, 32, rows=np.zeros(3, np.int32))
    values = np.zeros((4, 32), np.float32)
    values[2, 5] = np.inf
    with pytest.raises(ValueError, match=r"\[2, 5\] is not a finite number"):
        PackedWeight.from_float("w8a8", values)
    with pytest.raises(ValueError, match="65536"):
        PackedWeight.from_float("w8a8", np.zeros((1, 65537), np.float32))


def test_bytes_and_read_only_maps_are_taken(tmp_path):
    raw = random_blocks("q8_0", 5, 64)
    path = tmp_path / "weight.bin"
    path.write_bytes(raw.tobytes())
    expected = all_rows(PackedWeight.from_blocks("q8_0", raw, 5, 64))
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    assert same_bits(all_rows(PackedWeight.from_blocks("q8_0", mapped, 5, 64)), expected)
    assert same_bits(all_rows(PackedWeight.from_blocks("q8_0", memoryview(raw.tobytes()), 5, 64)), expected)


def test_packing_is_fast_enough():
    """100 MB pack in well under a second of two cores; a tenth of it may take a whole second here."""
    raw = random_blocks("q4_k", 4096, 4352)
    begin = time.process_time()
    PackedWeight.from_blocks("q4_k", raw, 4096, 4352)
    assert time.process_time() - begin < 1.0
