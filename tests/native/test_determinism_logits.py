"""Equal bits of logits whatever shares a step, however a prefill is cut, wherever pages lie, on any thread count."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from cpu_rig import Part, cpu_device, logits_of, random_table, random_tokens, run, same_bits, tiny_network

MODELS = [
    ("llama", "F32", "bf16"),
    ("llama", "Q4_1", "kv8"),
    ("llama", "BF16", "bf16"),
    ("llama", "W8A8", "kv8"),
    ("qwen2", "Q8_0", "kv8"),
    ("qwen2", "Q5_0", "bf16"),
    ("qwen3", "Q4_K", "bf16"),
    ("gemma3", "Q6_K", "kv8"),
    ("gemma3", "F16", "bf16"),
]
EVERY_MODEL = pytest.mark.parametrize(("family", "weight_format", "kv_format"), MODELS)
SOME_MODELS = pytest.mark.parametrize(("family", "weight_format", "kv_format"), [MODELS[1], MODELS[8]])


@EVERY_MODEL
@pytest.mark.parametrize("chunk", [1, 63, 64])
def test_prefill_chunks_do_not_matter(family, weight_format, kv_format, chunk):
    network = tiny_network(family, weight_format)
    tokens = random_tokens(network, 200)
    whole = logits_of(cpu_device(network, kv_format), tokens, random_table(0))
    cut = logits_of(cpu_device(network, kv_format), tokens, random_table(1), chunk)
    assert same_bits(whole, cut)


@SOME_MODELS
@pytest.mark.parametrize(("chunk", "threads"), [(1, 2), (63, 3), (512, 2)])
def test_chunks_and_threads_beyond_a_softmax_chunk(family, weight_format, kv_format, chunk, threads):
    network = tiny_network(family, weight_format)
    tokens = random_tokens(network, 600)
    whole = logits_of(cpu_device(network, kv_format), tokens, random_table(0), 600)
    cut = logits_of(cpu_device(network, kv_format, threads), tokens, random_table(1), chunk)
    assert same_bits(whole, cut)


@pytest.mark.slow
@SOME_MODELS
@pytest.mark.parametrize("chunk", [63, 512])
def test_long_contexts(family, weight_format, kv_format, chunk):
    network = tiny_network(family, weight_format)
    tokens = random_tokens(network, 2100)
    whole = logits_of(cpu_device(network, kv_format, 1, max_rows=2100), tokens, random_table(0), 2100)
    cut = logits_of(cpu_device(network, kv_format, 3), tokens, random_table(1), chunk)
    tail = logits_of(cpu_device(network, kv_format, 2), tokens[:2050], random_table(2), 512)
    assert same_bits(whole, cut)
    assert same_bits(whole[:2050], tail)


@EVERY_MODEL
def test_neighbours_in_a_step_do_not_matter(family, weight_format, kv_format):
    """1 to 33 rows: sequences of unlike lengths decode together, and beside a prefill."""
    network = tiny_network(family, weight_format)
    starts = [0, 1, 15, 16, 63, 64, 65, 100]
    sequences = [random_tokens(network, start + 1, seed=start) for start in starts]
    alone = [logits_of(cpu_device(network, kv_format), tokens, [0, 1])[-1] for tokens in sequences]
    device, tables = cpu_device(network, kv_format, 2), np.random.default_rng(3).permutation(64)[:20].reshape(10, 2)
    for tokens, table in zip(sequences, tables, strict=False):
        if len(tokens) > 1:
            run(device, Part(tokens[:-1], 0, table))
    prefill = random_tokens(network, 25, seed=99)
    parts = [Part(tokens[-1:], len(tokens) - 1, t) for tokens, t in zip(sequences, tables, strict=False)]
    together = run(device, *parts[:4], Part(prefill, 0, tables[9]), *parts[4:]).logits
    expected = [*alone[:4], None, *alone[4:]]
    for found, wanted in zip(together, expected, strict=True):
        assert wanted is None or same_bits(found[0], wanted)
    assert same_bits(together[4], logits_of(cpu_device(network, kv_format), prefill, [5]))


@SOME_MODELS
@pytest.mark.parametrize("rows", range(1, 34))
def test_every_number_of_rows(family, weight_format, kv_format, rows):
    network = tiny_network(family, weight_format)
    tokens = random_tokens(network, 70 + rows)
    device, other = cpu_device(network, kv_format), cpu_device(network, kv_format)
    whole = logits_of(device, tokens, [3, 9])
    run(other, Part(tokens[:70], 0, [8, 4]))
    assert same_bits(run(other, Part(tokens[70:], 70, [8, 4])).logits[0], whole[70:])


@EVERY_MODEL
def test_slices_of_layers_equal_the_whole(family, weight_format, kv_format):
    network = tiny_network(family, weight_format)
    tokens = random_tokens(network, 90)
    device = cpu_device(network, kv_format)
    whole = logits_of(device, tokens, [3, 9])
    device, hidden, other = cpu_device(network, kv_format), None, random_tokens(network, 5, seed=7)
    bounds = [0, 1, 3, device.units]
    for begin, end in pairwise(bounds):
        # Another sequence runs whole beside the part that moves up the layers.
        outcome = run(device, Part(tokens, 0, [8, 4], begin, end, hidden), Part(other, 0, [6]))
        assert outcome.reached == [end, device.units]
        hidden = outcome.hidden[0].copy()
    assert same_bits(outcome.logits[0], whole)
    assert same_bits(outcome.logits[1], logits_of(cpu_device(network, kv_format), other, [0]))


@EVERY_MODEL
def test_softmax_cut_elsewhere_is_noticed(family, weight_format, kv_format):
    """The planted reordering: decode steps that cut the softmax at other positions than prefill must be caught."""
    network = tiny_network(family, weight_format)
    tokens, table = random_tokens(network, 300), random_table(0)
    device, planted = cpu_device(network, kv_format), cpu_device(network, kv_format, chunk_tokens=128)
    whole = logits_of(device, tokens, table)
    for page in table:
        planted.model.write_page(page, device.model.read_page(page))
    honest = run(device, Part(tokens[-1:], 299, table)).logits[0][0]
    reordered = run(planted, Part(tokens[-1:], 299, table)).logits[0][0]
    assert same_bits(honest, whole[-1])
    assert not same_bits(reordered, whole[-1])
    assert np.allclose(reordered, whole[-1], atol=0.2)
