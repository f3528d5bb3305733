"""The memory plan: never over its budget, refused with a value that then fits, and true of the process it is for."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st

from kvern.assembly.memory import MemoryLimits, plan_memory
from kvern.assembly.model import DeviceOptions, make_device, open_model
from kvern.core.errors import PlanError
from kvern.runtime.memory_plan import (
    MIB,
    MemoryNeeds,
    available_bytes,
    default_budget,
    peak_resident_bytes,
    plan,
    resident_bytes,
    smallest_budget,
)
from kvern.weights.hub import cached

NEEDS = MemoryNeeds(
    weights=100 * MIB,
    load=20 * MIB,
    scratch=30 * MIB,
    host=5 * MIB,
    process=60 * MIB,
    page=MIB,
    max_context=4096,
    max_running=4,
    longest=8192,
)
sizes = st.integers(0, 1 << 34)
needs = st.builds(
    MemoryNeeds,
    weights=sizes, load=sizes, scratch=sizes, host=sizes, process=sizes, page=st.integers(1, 1 << 26),
    max_context=st.integers(1, 1 << 20), max_running=st.integers(1, 4096), longest=st.integers(1, 1 << 20),
)  # fmt: skip


@given(budget=st.integers(1, 1 << 38), needs=needs)
def test_never_over_budget_and_the_stated_value_fits(budget: int, needs: MemoryNeeds) -> None:
    try:
        made = plan(budget, needs)
    except PlanError as error:
        enough = re.search(r"\((\d+) bytes\)", str(error))
        assert enough is not None
        made = plan(int(enough[1]), needs)
        assert int(enough[1]) > budget
        context = re.search(r"context of at most (\d+)", str(error))
        if context is not None:
            shorter = replace(needs, max_context=int(context[1]))
            assert plan(budget, shorter).total <= budget
            with pytest.raises(PlanError):
                plan(budget, replace(needs, max_context=int(context[1]) + 1))
    assert made.total <= made.budget
    assert made.pages * 64 >= needs.max_context + 64


def test_pages_stop_at_what_all_sequences_can_fill() -> None:
    assert plan(1 << 40, NEEDS).pages == 4 * 65
    assert plan(smallest_budget(NEEDS), NEEDS).pages == 65


def test_pages_asked_for_are_given_or_refused() -> None:
    assert plan(1 << 30, NEEDS, pages=70).pages == 70
    with pytest.raises(PlanError, match=r"at least 65 pages, or a context of at most 3968"):
        plan(1 << 30, NEEDS, pages=63)
    with pytest.raises(PlanError, match="are enough"):
        plan(1 << 30, NEEDS, pages=5000)


def test_default_budget_is_a_quarter_but_enough_for_one_sequence() -> None:
    least = smallest_budget(NEEDS)
    assert default_budget(40 * least, NEEDS) == 10 * least
    assert default_budget(2 * least, NEEDS) == least
    assert default_budget(least, NEEDS) < least


def test_table_names_every_owner() -> None:
    table = plan(1 << 30, NEEDS).table()
    for word in ("weights", "KV pages", "scratch", "process", "while loading", "peak", "100.0 MiB", "1,024.0 MiB"):
        assert word in table


def test_available_memory_obeys_the_control_group(tmp_path: Path) -> None:
    proc, group = tmp_path / "proc", tmp_path / "group"
    proc.mkdir()
    group.mkdir()
    with pytest.raises(PlanError, match="does not say"):
        available_bytes(proc, group)
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   4096 kB\n")
    assert available_bytes(proc, group) == 4 * MIB
    (group / "memory.max").write_text("3145728\n")
    (group / "memory.current").write_text("2097152\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 1048576\n")
    assert available_bytes(proc, group) == 2 * MIB
    (group / "memory.max").write_text("max\n")
    assert available_bytes(proc, group) == 4 * MIB
    assert 0 < resident_bytes() <= peak_resident_bytes()


@pytest.mark.parametrize("kv_format", ["bf16", "kv8"])
@pytest.mark.parametrize("weight_format", ["file", "w8a8", "bf16", "f32"])
@pytest.mark.parametrize(("family", "file_format"), [("gemma3", "Q4_K"), ("llama", "Q5_1"), ("qwen3", "Q6_K")])
def test_needs_are_what_the_cpu_device_takes(
    family: str, file_format: str, weight_format: str, kv_format: str, tmp_path: Path
) -> None:
    pytest.importorskip("kvern._native", reason="the native library is not built")
    model = open_model(tiny_models.write_gguf(tmp_path / "m.gguf", family, file_format))
    options = DeviceOptions(weight_format=weight_format, kv_format=kv_format, max_rows=96, threads=2)
    made = plan_memory(model, options, MemoryLimits(max_context=1024, max_running=3, budget=1 << 30))
    device = make_device(model, replace(options, pages=made.pages))
    assert device.page_bytes == made.needs.page
    planned = made.needs.weights + made.needs.scratch + made.kv
    assert device.resident_bytes() <= planned
    packed = device.resident_bytes() - made.kv - made.needs.scratch
    assert packed <= made.needs.weights


_LOAD = """
import sys
from dataclasses import replace
from kvern.assembly.memory import MemoryLimits, plan_memory
from kvern.assembly.model import DeviceOptions, make_device, open_model
from kvern.runtime.memory_plan import peak_resident_bytes, resident_bytes
model = open_model(sys.argv[1])
options = DeviceOptions(threads=2)
plan = plan_memory(model, options, MemoryLimits(max_context=2048, max_running=4))
device = make_device(model, replace(options, pages=plan.pages))
model.close()
print(model.file_bytes, plan.total, plan.needs.process, resident_bytes(), peak_resident_bytes())
"""


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_loading_a_real_model_stays_within_file_and_plan(name: str) -> None:
    """Mapped tensors leave memory as they are packed: the peak is the packed weights and one tensor, not twice."""
    path = cached(name)
    if path is None:
        pytest.skip(f"{name} is not in the model cache (kvern pull {name})")
    done = subprocess.run([sys.executable, "-c", _LOAD, str(path)], capture_output=True, text=True, check=True)
    file, planned, process, resident, peak = map(int, done.stdout.split())
    assert resident <= 1.15 * file + process
    assert peak <= planned
    assert peak <= 1.75 * file + process
