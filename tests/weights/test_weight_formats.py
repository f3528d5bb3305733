"""Every weight format: decoded to the same bits as the gguf package, encoded within half a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvern.core.errors import ModelFileError
from kvern.formats import weights
from kvern.formats.weights import w8a8

VECTORS = Path(__file__).parent.parent / "data" / "format_vectors.npz"
BLOCK_FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
ROW_FORMATS = tuple(name for name in weights.NAMES if name != "BITSTACK")  # that one is coded matrix by matrix
# Root mean square error of a standard normal matrix; a broken nibble or scale gives at least 0.3.
LARGEST_ERROR = {
    "F32": 0.0, "F16": 3e-4, "BF16": 2e-3, "Q4_0": 0.095, "Q4_1": 0.085, "Q5_0": 0.047, "Q5_1": 0.041, "Q8_0": 0.006,
    "Q4_K": 0.085, "Q5_K": 0.042, "Q6_K": 0.022, "W8A8": 0.009,
    "QOQ": 0.11, "W6": 0.03, "W4A4_MIXED": 0.1, "BIPOLAR1": 0.65, "BIPOLAR2": 0.55, "BIPOLAR3": 0.24,
    "W4A16": 0.11, "BIPOLAR4": 0.115, "BIPOLAR5": 0.055, "BIPOLAR6": 0.028, "BIPOLAR7": 0.014, "BIPOLAR8": 0.007,
}  # fmt: skip


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("name", ["BF16", *BLOCK_FORMATS])
def test_decodes_to_the_bits_of_the_gguf_package(name: str) -> None:
    vectors = np.load(VECTORS)
    raw, bits = vectors[f"{name}.raw"], vectors[f"{name}.bits"]
    found = weights.get(name).decode(raw, *bits.shape)
    np.testing.assert_array_equal(found.view(np.uint32), bits)


@pytest.mark.peers
@pytest.mark.parametrize("name", ["BF16", *BLOCK_FORMATS])
def test_decodes_as_the_installed_gguf_package_does(name: str) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    quants = pytest.importorskip("gguf.quants")
    kind = weights.get(name)
    raw = np.random.default_rng(7).integers(0, 256, (40, kind.row_bytes(768)), np.uint8)
    with np.errstate(all="ignore"):
        expected = quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(kind.decode(raw, 40, 768).view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", ROW_FORMATS)
def test_an_encoded_matrix_comes_back_close(name: str) -> None:
    kind, values = weights.get(name), normal(6, 512)
    header = kind.plain_header(512)
    raw = kind.encode(values, header)
    assert raw.dtype == np.uint8
    assert raw.shape == (6, kind.row_bytes(512, header))
    decoded = kind.decode(raw, 6, 512, header)
    assert decoded.dtype == np.float32
    assert np.sqrt(np.mean((decoded - values) ** 2)) <= LARGEST_ERROR[name]


@pytest.mark.parametrize("name", ROW_FORMATS)
def test_zeros_stay_zeros(name: str) -> None:
    kind = weights.get(name)
    header = kind.plain_header(256)
    assert not kind.decode(kind.encode(np.zeros((2, 256), np.float32), header), 2, 256, header).any()


@pytest.mark.parametrize("name", ROW_FORMATS)
def test_rows_do_not_depend_on_each_other(name: str) -> None:
    kind, values = weights.get(name), normal(5, 256)
    header = kind.plain_header(256)
    whole = kind.encode(values, header)
    for row in range(5):
        np.testing.assert_array_equal(whole[row], kind.encode(values[row : row + 1], header)[0])
        alone = kind.decode(whole[row], 1, 256, header)[0]
        np.testing.assert_array_equal(alone, kind.decode(whole, 5, 256, header)[row])


@pytest.mark.parametrize("name", ROW_FORMATS)
def test_wrong_sizes_are_refused(name: str) -> None:
    kind = weights.get(name)
    header = kind.plain_header(256)
    raw = kind.encode(normal(2, 256), header)
    with pytest.raises(ModelFileError, match="needs"):
        kind.decode(raw[:, :-1], 2, 256, header)
    with pytest.raises(ModelFileError, match="needs"):
        kind.decode(raw.view(np.int8), 2, 256, header)
    with pytest.raises(ModelFileError, match="finite"):
        kind.encode(np.full((1, 256), np.nan, np.float32), header)
    for columns in (0, -256, *([255] if kind.block > 1 else [])):
        with pytest.raises(ModelFileError, match="blocks"):
            kind.row_bytes(columns)


def test_bits_per_weight_are_those_of_the_blocks() -> None:
    found = {name: weights.get(name).bits_per_weight for name in weights.NAMES}
    assert found == {
        "F32": 32, "F16": 16, "BF16": 16, "Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6, "Q8_0": 8.5, "Q4_K": 4.5,
        "Q5_K": 5.5, "Q6_K": 6.5625, "W8A8": 8, "QOQ": 4.25, "W6": 6.25, "W4A4_MIXED": 4.25,
        "W4A16": 4.25, "BITSTACK": 16,
        **{f"BIPOLAR{bits}": bits + 0.25 for bits in range(1, 9)},
    }  # fmt: skip


def test_formats_are_found_in_either_case_and_unknown_ones_named() -> None:
    assert weights.get("q4_k") is weights.get("Q4_K")
    with pytest.raises(ModelFileError, match="'Q9_9' is not known; known are F32"):
        weights.get("Q9_9")
    with pytest.raises(ModelFileError, match="not known"):
        weights.get("__init__")


def test_activations_named_by_the_formats() -> None:
    named = {name: weights.get(name).activation for name in weights.NAMES}
    assert {named.pop(name) for name in BLOCK_FORMATS} == {"int8 group 32"}
    assert named.pop("W4A4_MIXED") == "mixed 4/8"
    assert {named.pop(name) for name in ("W6", *(f"BIPOLAR{bits}" for bits in range(1, 9)))} == {"int8 group 64"}
    assert {named.pop(name) for name in ("W4A16", "BITSTACK")} == {"float32"}
    assert named == {"F32": "float32", "F16": "float32", "BF16": "float32", "W8A8": "int8 row", "QOQ": "int8 row"}


def test_w8a8_rows_are_codes_then_scale() -> None:
    values = np.array([[1.0, -2.0, 0.5, 127.0]], np.float32)
    raw = w8a8.FORMAT.encode(values)
    assert raw[0, :4].view(np.int8).tolist() == [1, -2, 0, 127]
    assert raw[0, 4:].view("<f4").tolist() == [1.0]
    codes, scales = w8a8.split(raw)
    assert codes.shape == (1, 4)
    assert scales.shape == (1, 1)


def test_half_floats_do_not_overflow_silently() -> None:
    with pytest.raises(ModelFileError, match="too large"):
        weights.get("F16").encode(np.array([[70000.0]], np.float32))
