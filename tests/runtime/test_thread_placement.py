"""Which CPUs compute threads are tied to, on machines of every shape."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvern.runtime.placement import Cpu, parse_list, place, read_topology


def machine(nodes: int, cores: int, ways: int = 1) -> list[Cpu]:
    """CPUs numbered as Linux does: all cores of all nodes first, then their second threads."""
    return [
        Cpu(way * nodes * cores + node * cores + core, (node, core), node)
        for way in range(ways) for node in range(nodes) for core in range(cores)
    ]  # fmt: skip


def test_two_cores_get_a_thread_each():
    assert place(2, machine(1, 2)) == (0, 1)


def test_whole_cores_come_before_second_threads():
    assert place(4, machine(1, 4, ways=2)) == (0, 1, 2, 3)
    assert place(6, machine(1, 4, ways=2)) == (0, 1, 2, 3, 4, 5)


def test_one_node_is_filled_before_the_next():
    assert place(6, machine(2, 4)) == (0, 1, 2, 3, 4, 5)


def test_the_node_with_more_allowed_cores_comes_first():
    cpus = [cpu for cpu in machine(2, 4) if cpu.id >= 2]
    assert place(4, cpus) == (4, 5, 6, 7)


@pytest.mark.parametrize("threads", [1, 3, 9])
def test_no_tying_where_it_would_do_harm(threads):
    assert place(threads, machine(1, 8)) == ()


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 2), st.integers(1, 40))
def test_every_thread_has_a_cpu_of_its_own(nodes, cores, ways, threads):
    cpus = machine(nodes, cores, ways)
    placed = place(threads, cpus)
    assert len(set(placed)) == len(placed) in (0, threads)
    assert set(placed) <= {cpu.id for cpu in cpus}


def test_topology_is_read_from_files(tmp_path: Path):
    for cpu, core in ((0, 0), (1, 1), (2, 0), (3, 1)):
        folder = tmp_path / "cpu" / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text("0\n")
        (folder / "core_id").write_text(f"{core}\n")
    for node, listed in (("node0", "0,2\n"), ("node1", "1,3\n")):
        (tmp_path / "node" / node).mkdir(parents=True)
        (tmp_path / "node" / node / "cpulist").write_text(listed)
    assert read_topology(tmp_path, [0, 1, 2]) == (Cpu(0, (0, 0), 0), Cpu(1, (0, 1), 1), Cpu(2, (0, 0), 0))


def test_a_machine_that_tells_nothing_has_one_node(tmp_path: Path):
    assert read_topology(tmp_path, [3, 5]) == (Cpu(3, (0, 3), 0), Cpu(5, (0, 5), 0))


def test_this_machine():
    assert {cpu.id for cpu in read_topology()} == os.sched_getaffinity(0)


def test_lists_of_cpus():
    assert parse_list("0-2,5, 7-7\n") == [0, 1, 2, 5, 7] and parse_list("") == [] and parse_list("x,3") == [3]
