"""Two steps at once on shares of the workers: the bits of one after the other; a stop reaches its own step only."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from cpu_rig import Part, batch_of, cpu_device, random_tokens, same_bits, tiny_network


def stepped(device, part, workers, stop=None):
    batch = batch_of(device, [part])
    batch.workers = workers
    if stop is not None:
        batch.stop = stop
    return device.step(batch), batch


def generate(device, tokens, table, workers):
    """Logits of a prefill in two chunks and of single rows after it."""
    cuts = [0, 70, 150, *range(151, len(tokens) + 1)]
    chunks = [stepped(device, Part(tokens[a:b], a, table), workers)[0].logits for a, b in pairwise(cuts)]
    return np.concatenate(chunks)


@pytest.mark.parametrize(
    ("family", "weight_format", "kv_format"), [("llama", "Q4_1", "kv8"), ("gemma3", "F16", "bf16")]
)
@pytest.mark.parametrize("shares", [((0, 1), (1, 1)), ((0, 2), (2, 1)), ((0, 0), (0, 0))])
def test_steps_side_by_side_give_the_bits_of_steps_in_turn(family, weight_format, kv_format, shares):
    network = tiny_network(family, weight_format)
    device = cpu_device(network, kv_format, threads=3, lanes=2)
    sequences = [random_tokens(network, 165, seed) for seed in (1, 2)]
    alone = [generate(cpu_device(network, kv_format), tokens, [5, 6, 7], (0, 0)) for tokens in sequences]
    start = threading.Barrier(2)

    def lane(number):
        start.wait()
        return generate(device, sequences[number], range(8 * number, 8 * number + 3), shares[number])

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lane, (0, 1)))
    assert all(same_bits(a, b) for a, b in zip(found, alone, strict=True))


def test_a_share_runs_blocks_of_rows_in_the_scratch_of_its_step():
    """Of 300 rows of scratch, three workers may have 100 each but two have 128."""
    network = tiny_network("llama", "W8A8")
    device = cpu_device(network, threads=3, max_rows=300)
    tokens = random_tokens(network, 300)
    alone = stepped(cpu_device(network), Part(tokens, 0, range(5)), (0, 0))[0].logits
    for workers in ((0, 2), (0, 3), (1, 2), (2, 1)):
        assert same_bits(stepped(device, Part(tokens, 0, range(5)), workers)[0].logits, alone)


def test_a_stop_reaches_its_own_step_only():
    network = tiny_network("gemma3", "Q4_0")
    device = cpu_device(network, threads=2, lanes=2)
    tokens = random_tokens(network, 400)
    stop = np.zeros(1, np.uint8)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            stop[0] = 0
            stopped = pool.submit(stepped, device, Part(tokens, 0, range(7)), (0, 1), stop)
            whole = pool.submit(stepped, device, Part(tokens, 0, range(8, 15)), (1, 1))
            stop[0] = 1
            result, batch = stopped.result()
            assert whole.result()[0].reached.tolist() == [device.units]
            reached = int(result.reached[0])
            assert reached < device.units
            rest = Part(tokens, 0, range(7), reached, None, batch.hidden if reached else None)
            assert same_bits(stepped(device, rest, (0, 2))[0].logits, whole.result()[0].logits)


def test_one_lane_serves_steps_in_turn():
    network = tiny_network("llama", "Q4_1")
    device = cpu_device(network, threads=2)
    tokens = random_tokens(network, 165)
    alone = generate(cpu_device(network), tokens, range(3), (0, 0))
    with ThreadPoolExecutor(3) as pool:
        lanes = [pool.submit(generate, device, tokens, range(8 * i, 8 * i + 3), (i % 2, 1)) for i in range(3)]
        assert all(same_bits(lane.result(), alone) for lane in lanes)


@pytest.mark.parametrize("workers", [(0, 3), (2, 1), (-1, 1), (1, -1)])
def test_shares_that_the_pool_does_not_have_are_refused(workers):
    network = tiny_network("llama")
    device = cpu_device(network, threads=2)
    with pytest.raises(ValueError, match="workers"):
        stepped(device, Part([1], 0, [0]), workers)


def test_more_lanes_take_more_scratch():
    network = tiny_network("llama")
    assert cpu_device(network, lanes=2).model.scratch_bytes == 2 * cpu_device(network).model.scratch_bytes
