"""Fused operations against the same operations one by one, on bits: panels, blocks of rows, private memory."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from cpu_rig import Part, batch_of, cpu_device, random_table, random_tokens, run, same_bits, tiny_network

MODELS = [
    ("llama", "F32", "bf16"),
    ("llama", "W8A8", "kv8"),
    ("llama", "BF16", "bf16"),
    ("qwen2", "Q4_1", "kv8"),
    ("qwen3", "Q8_0", "bf16"),
    ("gemma3", "Q6_K", "kv8"),
    ("gemma3", "F16", "bf16"),
]


def parts_of(network, sizes, unit_end=None):
    """One sequence of each size; the first ends at ``unit_end``."""
    parts, pages = [], random_table(len(sizes))
    for i, size in enumerate(sizes):
        table = [pages.pop() for _ in range(size // 64 + 1)]
        parts.append(Part(random_tokens(network, size, i), 0, table, 0, unit_end if i == 0 else None))
    return parts


BATCHES = ([1], [1] * 9, [30, 1, 40], [70], [131, 1, 64], [250, 3, 150])


@pytest.mark.parametrize(("family", "weight_format", "kv_format"), MODELS)
def test_fused_gives_the_bits_of_the_plain_operations(family, weight_format, kv_format):
    network = tiny_network(family, weight_format)
    plain = cpu_device(network, kv_format, apart=True)
    fused = [cpu_device(network, kv_format, threads) for threads in (1, 3)]
    for sizes, unit_end in product(BATCHES, (None, 3)):
        parts = parts_of(network, sizes, unit_end)
        wanted = run(plain, *parts)
        for device in fused:
            found = run(device, *parts)
            assert all(same_bits(a, b) for a, b in zip(found.logits, wanted.logits, strict=True))
            assert all(same_bits(a, b) for a, b in zip(found.hidden, wanted.hidden, strict=True))


@pytest.mark.parametrize("rows", [128, 129, 131, 300])
def test_scratch_for_just_the_rows_of_the_step(rows):
    """Workers that run whole chains share out the scratch of the step: what is left over must do."""
    network = tiny_network("llama", "Q4_1")
    parts = parts_of(network, [rows])
    wanted = run(cpu_device(network, apart=True), *parts)
    found = run(cpu_device(network, threads=2, max_rows=rows), *parts)
    assert same_bits(found.logits[0], wanted.logits[0])


@pytest.mark.parametrize("weight_format", ["Q4_0", "W8A8"])
def test_outputs_that_do_not_fill_a_panel(weight_format):
    """Feed-forward width 288 and hidden size 96: the last panel of 64 outputs is half full."""
    if weight_format == "W8A8":
        network = tiny_network(
            "qwen3", weight_format, hidden=96, intermediate=288 + 16, heads=3, kv_heads=1, head_dim=20
        )
    else:
        network = tiny_network("llama", weight_format, hidden=96, intermediate=288, heads=3, kv_heads=1, head_dim=32)
    for sizes, threads in (([3], 1), ([40, 9], 3), ([200], 2)):
        parts = parts_of(network, sizes)
        plain = run(cpu_device(network, apart=True), *parts)
        fused = run(cpu_device(network, threads=threads), *parts)
        assert all(same_bits(a, b) for a, b in zip(fused.logits, plain.logits, strict=True))


def test_fusing_saves_memory_and_is_the_default():
    network = tiny_network("llama", "Q4_0")
    fused, plain = cpu_device(network), cpu_device(network, apart=True)
    # Gate, up and their product, 512 wide each.
    assert plain.model.scratch_bytes - fused.model.scratch_bytes >= 640 * 4 * 3 * 512


def test_profile_counts_each_linear_once_a_step():
    network = tiny_network("qwen3", "Q4_1")
    device = cpu_device(network, threads=2)
    tokens = random_tokens(network, 200)
    run(device, Part(tokens, 0, random_table(0)))
    assert device.model.take_profile() == []
    device.model.profile(True)
    for size in (1, 200, 1):
        run(device, Part(tokens[:size], 0, random_table(0)))
    device.model.profile(False)
    run(device, Part(tokens, 0, random_table(0)))
    records = device.model.take_profile()
    assert device.model.take_profile() == []
    layers = device.units // 2
    weights = sum(w.n * w.k for w in network.weights() if w.name.startswith("blk") or "layers" in w.name)
    for rows, steps in ((1, 2), (200, 1)):
        found = {(r["unit"], r["operation"]): r for r in records if r["rows"] == rows}
        assert found["feed-forward", "gated"]["calls"] == layers * steps
        assert found["attention", "attend"]["calls"] == layers * steps
        assert found["head", "logits"]["calls"] == steps
        assert all(r["nanoseconds"] > 0 for r in found.values() if r["operation"] != "rows")
        linears = [r for (unit, name), r in found.items() if r["format"] == "q4_1" and unit != "head"]
        assert sum(r["operations"] for r in linears) == 2 * weights * rows * steps
        assert sum(r["bytes"] for r in linears) == pytest.approx(weights * 20 / 32 * steps)


def test_likeliest_tokens_without_logits():
    network = tiny_network("llama", "Q4_1")
    for threads, sizes in ((1, [5, 1, 1]), (2, [1] * 7), (3, [70, 1, 90])):
        device = cpu_device(network, threads=threads)
        parts = parts_of(network, sizes)
        both = step_with_greedy(device, parts, every=2)
        logits = np.concatenate(run(cpu_device(network), *parts).logits)
        wanted = logits.argmax(axis=1)
        assert np.array_equal(both.greedy, wanted[::2])
        assert same_bits(both.logits, np.ascontiguousarray(np.delete(logits, np.s_[::2], axis=0)))


def step_with_greedy(device, parts, every):
    batch = batch_of(device, parts)
    rows = batch.logit_rows
    batch.greedy_rows = np.ascontiguousarray(rows[::every])
    batch.logit_rows = np.ascontiguousarray(np.delete(rows, np.s_[::every]))
    return device.step(batch)


def test_rows_that_are_not_finite_have_no_likeliest_token():
    network = tiny_network("llama")
    device = cpu_device(network, threads=2)
    hidden = np.zeros((3, device.hidden_size), np.float32)
    hidden[1] = np.nan
    parts = [Part([1], 0, [0], 2, None, hidden[:1] + 1), Part([1], 0, [1], 2, None, hidden[1:2])]
    assert step_with_greedy(device, parts, 1).greedy.tolist()[1] == -1
    assert step_with_greedy(device, parts, 1).greedy.tolist()[0] >= 0
    # All logits equal: the lowest id.
    zero = step_with_greedy(device, [Part([1], 0, [0], device.units - 1, None, hidden[2:])], 1)
    assert zero.greedy.tolist() == [0]
