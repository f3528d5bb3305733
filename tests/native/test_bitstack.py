"""Bitstack: blocks come and go, sizes follow to the byte and outputs return to the bit."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from device_steps import logits_of, random_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from weight_blocks import random_rows, same_bits

from kvern import _native
from kvern.assembly.model import DeviceOptions, make_device, open_model
from kvern.assembly.quantiser import QuantiseOptions, quantise_model
from kvern.core.errors import ConfigError, ModelFileError
from kvern.formats.weights import bitstack
from kvern.kernels.cpu.device import CpuDevice, CpuLimits
from kvern.kernels.ops import Weight
from kvern.kernels.reference.device import ReferenceDevice
from kvern.kernels.weight_budget import BlockStack, blocks_within, load_order
from kvern.models.network import Model

BUDGET = 1 << 20  # bytes: about half of the tiny model below


def random_stack(n: int, k: int, blocks: int, rank: int, seed: int = 0):
    values = np.random.default_rng(seed).standard_normal((n, k), dtype=np.float32) * np.float32(0.05)
    return bitstack.stacked(values, blocks, rank)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 50),
    st.integers(1, 20),
    st.integers(1, 4),
    st.sampled_from([1, 3, 16, 17, 64]),
    st.integers(0, 999),
)
def test_any_number_of_blocks_equals_numpy_and_comes_back_to_the_bit(m, n, eighths, blocks, rank, seed):
    k = 8 * eighths
    header, raw = random_stack(n, k, blocks, rank, seed)
    weight, x = _native.PackedWeight.from_blocks("bitstack", raw, n, k, header=header), random_rows(m, k, seed)
    assert (weight.blocks, weight.resident_blocks) == (blocks, blocks)
    seen: dict[int, np.ndarray] = {}
    for count in [*range(blocks, 0, -1), *range(1, blocks + 1)]:
        weight.set_blocks(count, raw, header)
        rows = weight.rows(np.arange(n, dtype=np.int32))
        less_header, less = bitstack.first_blocks(header, raw, k, count)
        wanted = bitstack.FORMAT.decode(less, n, k, less_header)
        assert np.abs(rows - wanted).max() <= 2e-5 * max(1.0, float(np.abs(wanted).max()))
        expected = _native.linear(x, _native.PackedWeight.from_float("f32", rows), isa="portable")
        for isa in _native.available_isas():
            assert same_bits(_native.linear(x, weight, isa=isa), expected), (isa, count)
        assert same_bits(seen.setdefault(count, expected), expected)


def test_size_follows_block_by_block():
    header, raw = random_stack(40, 72, 5, 16)
    weight = _native.PackedWeight.from_blocks("bitstack", raw, 40, 72, header=header, blocks=2)
    assert weight.block_bytes == bitstack.block_memory(40, 72, 16) == 3 * (2 * 72 + 512) + 32 * 72
    for count in (2, 3, 4, 5, 1):
        before, had = weight.nbytes, weight.resident_blocks
        weight.set_blocks(count, raw, header)
        assert weight.nbytes - before == (count - had) * weight.block_bytes
    assert weight.nbytes == weight.block_bytes + 8 + 4 * 5


def test_rows_of_the_file_in_another_order():
    header, raw = random_stack(30, 64, 2, 4)
    order = np.random.default_rng(1).permutation(30).astype(np.int32)
    weight = _native.PackedWeight.from_blocks("bitstack", raw, 30, 64, order, header=header, blocks=1)
    weight.set_blocks(2, raw, header, order)
    plain = _native.PackedWeight.from_blocks("bitstack", raw, 30, 64, header=header)
    assert same_bits(weight.rows(np.arange(30, dtype=np.int32)), plain.rows(order))


def damaged_headers() -> list[tuple[str, np.ndarray]]:
    header, _ = random_stack(20, 64, 3, 4)
    words = header[:20].view("<u4")

    def with_word(at: int, value: int) -> np.ndarray:
        changed = header.copy()
        changed[:20].view("<u4")[at] = value
        return changed

    assert words.tolist() == [3, 4, 0, 1, 2]
    return [
        ("empty", header[:0]),
        ("a few bytes", header[:7]),
        ("cut", header[:-1]),
        ("longer", np.concatenate([header, header[:2]])),
        ("no blocks", with_word(0, 0)),
        ("many blocks", with_word(0, 65)),
        ("huge", with_word(0, 2**32 - 1)),
        ("rank 0", with_word(1, 0)),
        ("huge rank", with_word(1, 2**32 - 1)),
    ]


@pytest.mark.parametrize(("what", "header"), damaged_headers(), ids=[name for name, _ in damaged_headers()])
def test_a_damaged_header_is_refused(what, header):
    good, raw = random_stack(20, 64, 3, 4)
    with pytest.raises(ValueError, match="bitstack"):
        _native.PackedWeight.from_blocks("bitstack", raw, 20, 64, header=header)
    with pytest.raises(ModelFileError, match="BITSTACK"):
        bitstack.FORMAT.decode(raw, 20, 64, header)
    weight = _native.PackedWeight.from_blocks("bitstack", raw, 20, 64, header=good, blocks=1)
    with pytest.raises(ValueError, match="bitstack"):
        weight.set_blocks(2, raw, header)
    assert weight.resident_blocks == 1


def test_a_weight_takes_blocks_of_its_own_matrix_only():
    header, raw = random_stack(20, 64, 3, 4)
    weight = _native.PackedWeight.from_blocks("bitstack", raw, 20, 64, header=header)
    for count in (0, -1, 4):
        with pytest.raises(ValueError, match="1 to 3"):
            weight.set_blocks(count, raw, header)
    weight.set_blocks(1, raw, header)
    other, other_raw = random_stack(20, 64, 3, 8)
    with pytest.raises(ValueError, match="not the matrix"):
        weight.set_blocks(2, other_raw, other)
    with pytest.raises(ValueError, match="whole rows"):
        weight.set_blocks(2, raw[:-1], header)
    plain = _native.PackedWeight.from_float("f32", np.zeros((4, 8), np.float32))
    with pytest.raises(ValueError, match="not kept in parts"):
        plain.set_blocks(1, raw, header)


def test_every_block_brings_the_matrix_nearer_and_the_scale_of_columns_helps_where_inputs_are_large():
    rng = np.random.default_rng(0)
    values, scale = rng.standard_normal((96, 128), dtype=np.float32), np.ones(128, np.float32)
    scale[::8] = 30
    plain, scaled = bitstack.stacked(values, 5, 4), bitstack.stacked(values, 5, 4, scale)
    errors = []
    for header, raw in (plain, scaled):
        by_blocks = []
        for count in range(1, 6):
            less_header, less = bitstack.first_blocks(header, raw, 128, count)
            missed = (bitstack.FORMAT.decode(less, 96, 128, less_header) - values) * scale
            by_blocks.append(float(np.linalg.norm(missed)))
        assert by_blocks == sorted(by_blocks, reverse=True)
        errors.append(by_blocks[-1])
    assert errors[1] < errors[0] / 3


def test_impossible_encodings_are_refused():
    values = np.ones((8, 16), np.float32)
    for blocks, rank, columns in ((0, 4, 16), (65, 4, 16), (2, 0, 16), (2, 65, 16), (2, 4, 12)):
        with pytest.raises(ModelFileError, match="not possible"):
            bitstack.stacked(values[:, :columns], blocks, rank)
    for scale in (np.ones(15, np.float32), np.full(16, np.nan, np.float32), np.full(16, -1, np.float32)):
        with pytest.raises(ModelFileError, match="scale of columns"):
            bitstack.stacked(values, 2, 4, scale)
    header, _ = bitstack.stacked(values, 2, 4)
    with pytest.raises(ModelFileError, match="do not ascend"):
        bitstack.FORMAT.row_bytes(16, bitstack.split_header(header, 16).with_positions([3, 3]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 500)), min_size=1, max_size=8), st.data())
def test_budgets_are_kept_and_larger_ones_keep_more(shapes, data):
    stacks = []
    for i, (blocks, size) in enumerate(shapes):
        positions = sorted(data.draw(st.sets(st.integers(0, 30), min_size=blocks, max_size=blocks)))
        stacks.append(BlockStack(str(i), tuple(positions), size))
    least = sum(stack.block_bytes for stack in stacks)
    whole = sum(len(stack.positions) * stack.block_bytes for stack in stacks)
    small, large = sorted(data.draw(st.tuples(st.integers(least, whole), st.integers(least, whole))))
    few, more = blocks_within(stacks, small), blocks_within(stacks, large)
    assert all(1 <= a <= b <= len(s.positions) for a, b, s in zip(few, more, stacks, strict=True))
    assert sum(a * s.block_bytes for a, s in zip(few, stacks, strict=True)) <= small
    assert blocks_within(stacks, whole) == [len(stack.positions) for stack in stacks]
    # What stays out is what comes next in the order, and does not fit.
    if sum(few) < len(order := load_order(stacks)):
        used = sum(a * s.block_bytes for a, s in zip(few, stacks, strict=True))
        assert used + stacks[order[sum(few)]].block_bytes > small
    with pytest.raises(ConfigError, match=f"takes {least}"):
        blocks_within(stacks, least - 1)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny llama whose layers are in bitstack, its embedding in float32."""
    path = tiny_models.write_gguf(tmp_path_factory.mktemp("bitstack") / "m.gguf", "llama", "F32", layers=1)
    plain = open_model(path).network

    def converted(weight: Weight) -> Weight:
        header, raw = bitstack.stacked(weight.decode(0, weight.n), 3, 5)
        return Weight(weight.name, "BITSTACK", weight.n, weight.k, raw, header=header)

    names = ("query", "key", "value", "attention_output", "gate", "up", "down")
    layers = tuple(
        replace(layer, **{name: converted(getattr(layer, name)) for name in names}) for layer in plain.layers
    )
    return replace(plain, layers=layers)


def device_of(network: Model, budget: int | None = None) -> CpuDevice:
    return CpuDevice(network, "bf16", CpuLimits(pages=2, max_rows=160, weight_budget=budget), _native.Pool(2))


def test_a_device_shrinks_and_grows_to_a_budget(network: Model) -> None:
    tokens = random_tokens(70, network.spec.vocab)
    device = device_of(network)
    assert set(device.weight_blocks) == {3}
    whole, others = device.weight_bytes, device.resident_bytes() - device.weight_bytes
    full = logits_of(device, tokens)
    exact = logits_of(ReferenceDevice(network, "bf16", 2, "exact"), tokens)
    assert np.sqrt(np.mean((full - exact) ** 2) / np.mean(exact**2)) < 5e-4
    sizes, seen = [], []
    level = sum(stack.block_bytes for stack in device.block_stacks())
    for missing in (level // 2, level * 4 // 3, level // 2, level * 4 // 3):
        budget = whole - missing
        device.set_weight_budget(budget)
        assert device.weight_bytes <= budget
        assert device.resident_bytes() == device.weight_bytes + others
        sizes.append(device.weight_bytes)
        seen.append(logits_of(device, tokens))
    assert same_bits(seen[-1], logits_of(device_of(network, budget), tokens))
    assert sizes[:2] == sizes[2:] and sizes[1] < sizes[0] < whole
    assert same_bits(seen[0], seen[2]) and same_bits(seen[1], seen[3]) and not same_bits(seen[0], seen[1])
    device.set_weight_budget(None)
    assert device.weight_bytes == whole and same_bits(logits_of(device, tokens), full)
    with pytest.raises(ConfigError, match="at least"):
        device.set_weight_budget(1000)
    assert same_bits(logits_of(device, tokens), full)


def test_blocks_change_between_steps_never_in_one(network: Model) -> None:
    """Another thread changes the budget all the while: each step has the bits of one of the two budgets."""
    tokens = random_tokens(3, network.spec.vocab)
    device = device_of(network)
    smaller = device.weight_bytes - sum(stack.block_bytes for stack in device.block_stacks())
    full = logits_of(device, tokens)
    device.set_weight_budget(smaller)
    less = logits_of(device, tokens)
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            for budget in (None, smaller):
                device.set_weight_budget(budget)

    other = threading.Thread(target=change)
    other.start()
    try:
        found = [logits_of(device, tokens) for _ in range(40)]
    finally:
        done.set()
        other.join()
    assert all(same_bits(logits, full) or same_bits(logits, less) for logits in found)


def test_a_quantised_file_is_cut_to_a_budget_and_grows_after_it_was_closed(tmp_path: Path) -> None:
    """`kvern quantize --format bitstack`, then blocks read again from the file's map, which outlives `close`."""
    source = tiny_models.write_gguf(tmp_path / "m.gguf", "llama", "F32", layers=1)
    text = tmp_path / "text"
    text.write_text("the quick brown fox jumps over the lazy dog " * 40, encoding="utf-8")
    options = QuantiseOptions(
        model=str(source), format="bitstack", out=tmp_path / "m.safetensors", calibration=text, report=False
    )
    model = open_model(quantise_model(options)[0])
    tokens = random_tokens(9, model.spec.vocab)
    whole, cut = (
        make_device(model, DeviceOptions(pages=2, max_rows=16, weight_budget=budget)) for budget in (None, BUDGET)
    )
    assert isinstance(whole, CpuDevice) and isinstance(cut, CpuDevice)
    assert set(whole.weight_blocks) == {bitstack.BLOCKS}
    assert min(cut.weight_blocks) >= 1 and max(cut.weight_blocks) - min(cut.weight_blocks) <= 1
    assert cut.weight_bytes <= BUDGET < whole.weight_bytes
    model.close()
    assert not same_bits(logits_of(cut, tokens), logits_of(whole, tokens))
    cut.set_weight_budget(None)
    assert cut.weight_bytes == whole.weight_bytes
    assert same_bits(logits_of(cut, tokens), logits_of(whole, tokens))


def test_a_budget_is_for_the_cpu_back_end() -> None:
    with pytest.raises(ConfigError, match="weight_budget"):
        DeviceOptions(backend="reference", weight_budget=1 << 20)
