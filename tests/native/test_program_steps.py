"""The program against the NumPy back end, its stops, and its refusal of every malformed batch."""

from __future__ import annotations

import threading
from dataclasses import replace

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

from kvern.core.errors import ConfigError
from kvern.kernels.reference.device import ReferenceDevice


@pytest.mark.parametrize("kv_format", ["bf16", "kv8"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_agrees_with_the_reference(family, kv_format):
    network = tiny_network(family)
    tokens, table = random_tokens(network, 130), random_table(0)
    found = logits_of(cpu_device(network, kv_format), tokens, table, 50)
    wanted = logits_of(ReferenceDevice(network, kv_format, PAGES), tokens, table, 130)
    # Values on the edge of two codes may round apart, so a few rows move by about a code.
    difference = np.abs(found - wanted).max(axis=1)
    assert np.median(difference) < (0.005 if kv_format == "bf16" else 0.02)
    assert difference.max() < 0.3


@pytest.mark.parametrize(
    "weight_format", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "W8A8"]
)
def test_agrees_with_the_reference_in_every_format(weight_format):
    network = tiny_network("llama", weight_format)
    tokens, table = random_tokens(network, 40), random_table(0)
    found = logits_of(cpu_device(network), tokens, table)
    wanted = logits_of(ReferenceDevice(network, "bf16", PAGES, "as_cpu"), tokens, table)
    difference = np.abs(found - wanted).max(axis=1)
    assert np.median(difference) < 0.08
    assert difference.max() < 0.5


@pytest.mark.parametrize("sizes", [{"head_dim": 8}, {"head_dim": 20, "heads": 3, "kv_heads": 1}, {"head_dim": 128},
                                   {"head_dim": 256, "heads": 8, "kv_heads": 1}])  # fmt: skip
@pytest.mark.parametrize("kv_format", ["bf16", "kv8"])
def test_head_sizes(sizes, kv_format):
    network = tiny_network("qwen3", **sizes)
    tokens, table = random_tokens(network, 90), random_table(0)
    found = logits_of(cpu_device(network, kv_format), tokens, table, 33)
    wanted = logits_of(ReferenceDevice(network, kv_format, PAGES), tokens, table, 130)
    assert np.median(np.abs(found - wanted).max(axis=1)) < 0.02
    assert same_bits(found, logits_of(cpu_device(network, kv_format, 2), tokens, random_table(1), 90))


def test_stop_before_the_first_unit_leaves_slices_untouched():
    network = tiny_network("llama")
    device = cpu_device(network)
    parked = np.full((3, device.hidden_size), 2.5, np.float32)
    outcome = run(device, Part([1, 2], 0, [0]), Part([3, 4, 5], 0, [1], 1, 3, parked), stop=True)
    assert outcome.reached == [0, 1]
    assert same_bits(outcome.hidden[1], parked)
    assert not outcome.logits[0].any()


def test_interrupted_and_resumed_gives_the_same_bits():
    """A stop that falls at any unit boundary: the hidden rows and the unit reached are enough to go on."""
    network = tiny_network("gemma3", "Q4_0")
    tokens = random_tokens(network, 500)
    whole = logits_of(cpu_device(network, "kv8"), tokens, random_table(0), 500)
    device = cpu_device(network, "kv8")
    stopped_midway = 0
    for wait in (0.0, 0.001, 0.003, 0.006, 0.01, 0.015, 0.02):
        batch = batch_of(device, [Part(tokens, 0, random_table(1))])
        timer = threading.Timer(wait, batch.stop.fill, [1])
        timer.start()
        result = device.step(batch)
        timer.join()
        reached = int(result.reached[0])
        stopped_midway += 0 < reached < device.units
        if reached == device.units:
            assert same_bits(result.logits, whole)
            continue
        part = Part(tokens, 0, random_table(1), reached, None, batch.hidden if reached else None)
        assert same_bits(run(device, part).logits[0], whole)
    assert stopped_midway > 0


def test_garbage_in_fresh_pages_is_not_read():
    network = tiny_network("llama")
    for kv_format in ("bf16", "kv8"):
        clean, dirty = cpu_device(network, kv_format), cpu_device(network, kv_format)
        for page in range(PAGES):
            dirty.model.write_page(page, b"\xff" * dirty.page_bytes)  # NaN everywhere
        tokens = random_tokens(network, 150)
        for chunk in (1, 64, 150):
            assert same_bits(
                logits_of(clean, tokens, random_table(0), chunk), logits_of(dirty, tokens, random_table(1), chunk)
            )


def test_a_poisoned_row_poisons_only_its_own_sequence():
    network = tiny_network("llama")
    device = cpu_device(network)
    sound = logits_of(device, [1, 2, 3], [0])
    hidden = np.full((3, device.hidden_size), np.nan, np.float32)
    outcome = run(device, Part([1, 2, 3], 0, [1], 2, None, hidden), Part([1, 2, 3], 0, [2]))
    assert np.isnan(outcome.logits[0]).all()
    assert same_bits(outcome.logits[1], sound)


def test_copied_page_reads_alike():
    network = tiny_network("qwen2")
    device = cpu_device(network)
    tokens = random_tokens(network, 40)
    run(device, Part(tokens[:39], 0, [5]))
    device.copy_page(5, 6)
    first = run(device, Part(tokens[39:], 39, [5])).logits[0]
    assert same_bits(run(device, Part(tokens[39:], 39, [6])).logits[0], first)
    for source, target in ((-1, 0), (0, PAGES), (PAGES, 0), (0, -1)):
        with pytest.raises(ValueError, match="outside"):
            device.copy_page(source, target)


def _int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


BAD_BATCHES = {
    "token too large": {"tokens": _int32(1, 2, 3, 1 << 30)},
    "token negative": {"tokens": _int32(1, -1, 3, 4)},
    "tokens of another type": {"tokens": np.arange(4, dtype=np.int64)},
    "positions too few": {"positions": _int32(0, 1, 2)},
    "position negative": {"positions": _int32(-1, 0, 0, 1)},
    "positions with a hole": {"positions": _int32(0, 2, 0, 1)},
    "position past the table": {"positions": _int32(0, 1, 127, 128)},
    "position near the end of int32": {"positions": _int32(0, 1, 2**31 - 2, 2**31 - 1)},
    "row_begin too short": {"row_begin": _int32(0, 4)},
    "row_begin descends": {"row_begin": _int32(0, 5, 4)},
    "row_begin negative": {"row_begin": _int32(0, -1, 4)},
    "row_begin starts late": {"row_begin": _int32(1, 2, 4)},
    "row_begin ends early": {"row_begin": _int32(0, 2, 3)},
    "unit_begin negative": {"unit_begin": _int32(-1, 0)},
    "unit_begin after the end": {"unit_begin": _int32(4, 0), "unit_end": _int32(3, 4)},
    "unit_end too large": {"unit_end": _int32(4, 5)},
    "page too large": {"block_table": np.array([[0, 1], [PAGES, 2]], np.int32)},
    "page negative": {"block_table": np.array([[0, 1], [-1, 2]], np.int32)},
    "table of one row": {"block_table": np.array([[0, 1]], np.int32)},
    "table without columns": {"block_table": np.zeros((2, 0), np.int32)},
    "table not contiguous": {"block_table": np.zeros((4, 4), np.int32)[::2, ::2]},
    "hidden too narrow": {"hidden": np.zeros((4, 8), np.float32)},
    "hidden too short": {"hidden": np.zeros((3, 256), np.float32)},
    "hidden of another type": {"hidden": np.zeros((4, 256), np.float64)},
    "logit row too large": {"logit_rows": _int32(1, 4)},
    "logit row negative": {"logit_rows": _int32(-1, 1)},
    "logit rows repeat": {"logit_rows": _int32(1, 1)},
    "logits of a slice that ends early": {"unit_end": _int32(2, 4), "logit_rows": _int32(1)},
    "stop empty": {"stop": np.zeros(0, np.uint8)},
    "no rows": {"tokens": _int32(), "positions": _int32(), "hidden": np.zeros((0, 256), np.float32)},
    "a list": {"tokens": [1, 2, 3, 4]},
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_malformed_batches_are_refused_and_change_nothing(name):
    device = cpu_device(tiny_network("llama"), pages=PAGES)
    good = batch_of(device, [Part([1, 2], 0, [0, 1]), Part([3, 4], 0, [2, 3])])
    before = device.model.read_page(0) + device.model.read_page(2)
    with pytest.raises(ValueError):
        device.step(replace(good, **BAD_BATCHES[name]))
    assert device.model.read_page(0) + device.model.read_page(2) == before
    assert device.step(good).reached.tolist() == [4, 4]


def test_more_rows_than_scratch_are_refused():
    device = cpu_device(tiny_network("llama"), max_rows=4)
    with pytest.raises(ValueError, match=r"5 rows.*1\.\.4"):
        run(device, Part([1, 2, 3, 4, 5], 0, [0]))


@pytest.mark.parametrize(
    "limits", [{"pages": 0}, {"pages": -1}, {"pages": 1 << 62}, {"max_rows": 0}, {"chunk_tokens": 100}]
)
def test_impossible_limits_are_refused(limits):
    with pytest.raises(ConfigError):
        cpu_device(tiny_network("llama"), **limits)


def test_unknown_kv_format_is_refused():
    with pytest.raises(ConfigError, match="'kv5' is not known"):
        cpu_device(tiny_network("llama"), "kv5")
    with pytest.raises(ConfigError, match="f32.*reference"):
        cpu_device(tiny_network("llama"), "f32")


def test_steps_of_two_threads_are_served_one_at_a_time():
    network = tiny_network("llama", "Q4_0")
    device = cpu_device(network, threads=2)
    tokens = random_tokens(network, 64)
    wanted = logits_of(device, tokens, [0])
    found: dict[int, np.ndarray] = {}

    def prefill(page: int) -> None:
        found[page] = logits_of(device, tokens, [page], 16)

    threads = [threading.Thread(target=prefill, args=(page,)) for page in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same_bits(found[page], wanted) for page in (1, 2, 3))


def test_bytes_are_accounted_for():
    device = cpu_device(tiny_network("llama"), "bf16")
    assert device.page_bytes == 2 * 2 * 64 * 2 * 64 * 2  # layers, K and V, tokens, KV heads, head size, bytes
    assert device.resident_bytes() > device.page_bytes * PAGES
