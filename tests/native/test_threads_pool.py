"""The pool of workers: shared by several lanes, idle without work, and clean about the caller's float state."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from weight_blocks import random_rows, random_weight, same_bits

from kvern import _native


def test_several_lanes_share_one_pool():
    pool = _native.Pool(3)
    weight = random_weight(_native, "q4_1", 200, 256)
    inputs = [random_rows(m, 256, seed=m) for m in (1, 2, 5, 9)]
    expected = [_native.linear(x, weight) for x in inputs]
    wrong: list[int] = []

    def lane(i: int) -> None:
        for _ in range(200):
            if not same_bits(_native.linear(inputs[i], weight, pool=pool), expected[i]):
                wrong.append(i)

    lanes = [threading.Thread(target=lane, args=(i,)) for i in range(len(inputs))]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    assert wrong == []


def test_an_idle_pool_uses_no_processor_time():
    pool = _native.Pool(3)
    weight = random_weight(_native, "q4_1", 64, 256)
    _native.linear(random_rows(3, 256), weight, pool=pool)
    begin = time.process_time()
    assert not threading.Event().wait(0.5)
    used = time.process_time() - begin
    assert used < 0.05, f"an idle pool used {used:.3f} s of processor time in 0.5 s"


def test_work_after_parking_is_done():
    pool = _native.Pool(2)
    weight, x = random_weight(_native, "q8_0", 64, 256), random_rows(3, 256)
    expected = _native.linear(x, weight)
    for _ in range(20):
        threading.Event().wait(0.002)  # longer than the workers spin
        assert same_bits(_native.linear(x, weight, pool=pool), expected)


def test_pools_come_and_go():
    weight, x = random_weight(_native, "q4_0", 40, 64), random_rows(2, 64)
    expected = _native.linear(x, weight)
    before = threading.active_count()
    for threads in (1, 2, 3, 4) * 25:
        cpu = min(os.sched_getaffinity(0))
        pool = _native.Pool(threads, cpus=[cpu] * threads if threads % 2 == 0 else [])
        assert pool.threads == threads
        assert same_bits(_native.linear(x, weight, pool=pool), expected)
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_denormals_are_zero_inside_and_untouched_outside(threads):
    small = np.full((1, 8), 1e-30, np.float32)
    weight = _native.PackedWeight.from_float("f32", np.full((40, 8), 1e-12, np.float32))
    assert not _native.linear(small, weight, threads=threads).any()
    assert np.float32(1e-30) * np.float32(1e-12) > 0


@pytest.mark.parametrize("threads", [0, -1, 5000])
def test_absurd_numbers_of_threads_are_refused(threads):
    with pytest.raises(ValueError, match="threads must be 1 to 1024"):
        _native.Pool(threads)


def test_threads_are_tied_to_their_cpus():
    allowed = sorted(os.sched_getaffinity(0))
    cpus = [allowed[0], allowed[-1]]
    before = {int(thread.name) for thread in Path("/proc/self/task").iterdir()}
    pool = _native.Pool(2, cpus=cpus)
    (worker,) = {int(thread.name) for thread in Path("/proc/self/task").iterdir()} - before
    weight, x = random_weight(_native, "q4_1", 64, 256), random_rows(3, 256)
    expected = _native.linear(x, weight)
    places: list[set[int]] = []

    def lane() -> None:
        pool.pin_caller()
        assert same_bits(_native.linear(x, weight, pool=pool), expected)
        places.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=lane)
    thread.start()
    thread.join()
    assert places == [{cpus[0]}]
    assert os.sched_getaffinity(worker) == {cpus[1]}
    assert os.sched_getaffinity(0) == set(allowed)  # this thread was never tied


def test_shares_of_a_pool_run_side_by_side():
    allowed = sorted(os.sched_getaffinity(0))
    pool = _native.Pool(3, cpus=[allowed[i % len(allowed)] for i in range(3)])
    weight, x = random_weight(_native, "q4_1", 200, 256), random_rows(5, 256)
    expected = _native.linear(x, weight)
    shares = [pool.share(0, 1), pool.share(1, 2)]
    assert [share.cpus for share in shares] == [pool.cpus[:1], pool.cpus[1:]]
    right: list[bool] = []

    def lane(share: _native.Pool) -> None:
        right.extend(same_bits(_native.linear(x, weight, pool=share), expected) for _ in range(50))

    lanes = [threading.Thread(target=lane, args=(share,)) for share in shares]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    assert right == [True] * 100


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: _native.Pool(2, cpus=[0]), "1 CPUs for 2 threads"),
        (lambda: _native.Pool(1, cpus=[-1]), "CPU -1 is not one"),
        (lambda: _native.Pool(2).share(1, 2), r"workers 1\.\.2 are not among the 2"),
        (lambda: _native.Pool(2).share(0, 0), "are not among"),
    ],
)
def test_impossible_places_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
