"""The 4-bit KV formats in native code: as the NumPy reference has them, and equal bits however a run is cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from cpu_rig import (
    PAGES,
    Part,
    batch_of,
    cpu_device,
    logits_of,
    random_table,
    random_tokens,
    run,
    same_bits,
    tiny_network,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from kvern.kernels.reference.device import ReferenceDevice
from kvern.models.network import Model

FORMATS = ("kv4", "kv4-hadamard", "kv4-token", "kv8/kv4-token", "kv4/kv8", "kv4-hadamard/bf16")
EVERY_FORMAT = pytest.mark.parametrize("kv_format", FORMATS)
TAILED = pytest.mark.parametrize("kv_format", ["kv4", "kv4/kv8"])
# (heads, kv_heads, head_dim)
SHAPES = [(3, 1, 64), (2, 2, 80), (4, 2, 128), (2, 1, 256), (5, 1, 20), (1, 1, 12)]


def of_shape(heads: int, kv_heads: int, head_dim: int) -> Model:
    return tiny_network("qwen3", "F32", hidden=64, intermediate=64, layers=1, heads=heads, kv_heads=kv_heads,
                        head_dim=head_dim)  # fmt: skip


def changes(device, tokens: list[int], chunk: int) -> np.ndarray:
    """What the first attention adds to the residual, of all rows."""
    found = []
    for at in range(0, len(tokens), chunk):
        found.append(run(device, Part(tokens[at : at + chunk], at, random_table(5), 0, 1)).hidden[0].copy())
    return np.concatenate(found)


@EVERY_FORMAT
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_is_that_of_the_reference(shape: tuple[int, int, int], kv_format: str) -> None:
    """Within rounding of the reference, but for rows that see a number on the edge of two codes; the kernels alone
    are held to float64 in test_kv_four_bits_kernels.py."""
    network = of_shape(*shape)

    @settings(max_examples=3, deadline=None, derandomize=True)
    @given(st.integers(1, 300), st.sampled_from([1, 7, 64, 65, 300]))
    def check(count: int, chunk: int) -> None:
        tokens = random_tokens(network, count, seed=count)
        expected = changes(ReferenceDevice(network, kv_format, PAGES), tokens, count)
        difference = np.abs(changes(cpu_device(network, kv_format), tokens, max(chunk, count // 9)) - expected)
        assert np.median(difference) < 2e-4
        assert difference.max() < 0.05

    check()


@EVERY_FORMAT
@pytest.mark.parametrize(("chunk", "threads"), [(1, 2), (63, 1), (64, 3), (65, 2), (512, 1)])
def test_chunks_and_threads_do_not_matter(kv_format: str, chunk: int, threads: int) -> None:
    network = tiny_network("llama", "Q4_1")
    tokens = random_tokens(network, 200 if chunk == 1 else 600)
    whole = logits_of(cpu_device(network, kv_format), tokens, random_table(0), 600)
    assert same_bits(whole, logits_of(cpu_device(network, kv_format, threads), tokens, random_table(1), chunk))


@EVERY_FORMAT
def test_windows_and_wide_heads(kv_format: str) -> None:
    network = tiny_network("gemma3", "F32", head_dim=256, window=100, intermediate=64)
    tokens = random_tokens(network, 200)
    whole = logits_of(cpu_device(network, kv_format), tokens, random_table(0), 200)
    assert same_bits(whole, logits_of(cpu_device(network, kv_format, 2), tokens, random_table(1), 50))
    reference = logits_of(ReferenceDevice(network, kv_format, PAGES), tokens, random_table(1), 200)
    assert np.sqrt(np.mean((whole - reference) ** 2) / np.mean(reference**2)) < 0.05


@EVERY_FORMAT
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 16, 33])
def test_neighbours_in_a_step_do_not_matter(kv_format: str, rows: int) -> None:
    """Sequences of unlike lengths, around the ends of pages, decode together."""
    network = tiny_network("llama", "Q4_1")
    lengths = [1, 63, 64, 65, 127, 128, 129, 130, 191, 192, 193, *range(2, 24)][:rows]
    tables = np.random.default_rng(rows).permutation(4 * 33).reshape(33, 4)
    alone, together = (cpu_device(network, kv_format, threads, pages=132, tail_slots=132) for threads in (1, 2))
    expected, parts = [], []
    for number, (length, table) in enumerate(zip(lengths, tables, strict=False)):
        tokens = random_tokens(network, length + 1, seed=number)
        expected.append(logits_of(alone, tokens, table.tolist())[-1])
        run(together, Part(tokens[:-1], 0, table.tolist()))
        parts.append(Part(tokens[-1:], length, table.tolist()))
    for found, wanted in zip(run(together, *parts).logits, expected, strict=True):
        assert same_bits(found[0], wanted)


@EVERY_FORMAT
def test_open_spans_equal_the_whole(kv_format: str) -> None:
    """A chunk moves up the layers in slices, another sequence runs beside it, and the next chunk follows."""
    network = tiny_network("llama", "Q4_1")
    tokens, other = random_tokens(network, 300), random_tokens(network, 140, seed=7)
    whole = logits_of(cpu_device(network, kv_format), tokens, random_table(0))
    device, found = cpu_device(network, kv_format, 2), []
    for at in range(0, 300, 100):
        hidden = None
        for begin, end in pairwise([0, 1, 2, device.units]):
            begun = at // 100 * 3 + begin
            beside = Part(other[begun * 10 : begun * 10 + 10], begun * 10, [50, 51, 52])
            outcome = run(device, Part(tokens[at : at + 100], at, range(10, 16), begin, end, hidden), beside)
            hidden = outcome.hidden[0].copy()
        found.append(outcome.logits[0].copy())
    assert same_bits(np.concatenate(found), whole)


@TAILED
def test_a_stopped_step_goes_on(kv_format: str) -> None:
    """Stopped at a unit boundary and continued, or not begun at all and run again."""
    network = tiny_network("llama", "Q4_1")
    tokens, table = random_tokens(network, 300), random_table(0)
    whole = logits_of(cpu_device(network, kv_format), tokens, table)
    device = cpu_device(network, kv_format)
    run(device, Part(tokens[:150], 0, table))
    assert run(device, Part(tokens[150:], 150, table), stop=True).reached == [0]
    below = run(device, Part(tokens[150:], 150, table, 0, 3))
    assert same_bits(run(device, Part(tokens[150:], 150, table, 3, None, below.hidden[0])).logits[0], whole[150:])


@TAILED
def test_a_slot_serves_the_next_sequence_and_recomputation(kv_format: str) -> None:
    """Preempted and recomputed on other pages, in a slot that another sequence had used meanwhile."""
    network = tiny_network("llama", "Q4_1")
    tokens, other = random_tokens(network, 200), random_tokens(network, 180, seed=3)
    whole = logits_of(cpu_device(network, kv_format), tokens, random_table(0))
    device = cpu_device(network, kv_format)
    run(device, Part(tokens[:130], 0, [7, 1, 2, 3]))
    run(device, Part(other, 0, [7, 4, 5]))
    again = [run(device, Part(tokens[a:b], a, [7, 9, 8, 10])).logits[0] for a, b in [(0, 130), (130, 200)]]
    assert same_bits(np.concatenate(again), whole)


@TAILED
def test_steps_that_do_not_fit_the_tail_are_refused(kv_format: str) -> None:
    network = tiny_network("llama", "Q4_1")
    device, tokens = cpu_device(network, kv_format, tail_slots=4), random_tokens(network, 200)
    run(device, Part(tokens[:150], 0, [1, 2, 3]))
    for begin, why in (
        (160, "begins at position 160; in layer 0 its tail is at 150"),
        (100, "begins at position 100"),
    ):
        with pytest.raises(ValueError, match=why):
            run(device, Part(tokens[begin:], begin, [1, 2, 3, 4]))
    batch = batch_of(device, [Part(tokens[150:160], 150, [1, 2, 3]), Part(tokens[:10], 0, [2])])
    for slots, why in (([1, 1], "two slices"), ([1, 4], "tail slot 4"), ([-1, 1], "tail slot -1")):
        batch.tail_slot = np.array(slots, np.int32)
        with pytest.raises(ValueError, match=why):
            device.step(batch)
    batch.tail_slot = None
    with pytest.raises(ValueError, match="needs the tail slot"):
        device.step(batch)
    batch.tail_slot = np.array([1], np.int32)
    with pytest.raises(ValueError, match="tail_slot"):
        device.step(batch)
    whole = logits_of(cpu_device(network, kv_format), tokens, random_table(0))
    assert same_bits(run(device, Part(tokens[150:], 150, [1, 2, 3, 4])).logits[0], whole[150:])


@EVERY_FORMAT
def test_what_is_not_finite_spoils_its_own_sequence_alone(kv_format: str) -> None:
    """Every row that sees it, in the tail or in a sealed page, becomes NaN; the sequence beside it keeps its bits."""
    network = tiny_network("llama", "F32")
    table = network.embedding.raw.view(np.float32).reshape(network.vocab_size, -1).copy()
    table[5] = np.inf
    network = replace(network, embedding=replace(network.embedding, raw=table.view(np.uint8)))
    clean = [token for token in random_tokens(network, 300) if token != 5][:200]
    device = cpu_device(network, kv_format)
    found = run(device, Part([*clean[:20], 5, *clean[20:]], 0, [0, 1, 2, 3]), Part(clean, 0, [4, 5, 6, 7])).logits
    assert np.isnan(found[0][20:]).any(axis=1).all()
    assert same_bits(found[1], logits_of(cpu_device(network, kv_format), clean, [9, 8, 7, 6]))
