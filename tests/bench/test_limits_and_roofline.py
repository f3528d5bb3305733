"""`kvern limits`: ceilings are real rates, floors follow from them, and the plot is a well-formed picture."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from cpu_rig import cpu_device, tiny_network

from kvern import _native
from kvern.bench.ceilings import Ceilings, Rate, measure_ceilings
from kvern.bench.limits import Case, measure_limits
from kvern.bench.roofline_plot import roofline_svg
from kvern.cli.main import main
from kvern.core.errors import ConfigError
from kvern.kernels.cpu.device import CpuDevice

CASES = (Case("decode", 3, 70, 1), Case("prefill", 1, 0, 40))


def fixed(value: float) -> Rate:
    return Rate(value, value, value)


@pytest.fixture(scope="module")
def device() -> CpuDevice:
    return cpu_device(tiny_network("llama", "Q4_0"), pages=16, max_rows=64)


def test_ceilings_are_measured():
    found = measure_ceilings(2, repeats=1)
    assert found.isa == _native.isa() and found.threads == 2
    assert all(1e7 < rate.low <= rate.median <= rate.high < 1e13 for rate in found.read.values())
    assert found.operations["float32 fma"].median > 1e7
    assert ("int8 tile" in found.operations) == (found.isa == "amx")


def test_a_working_set_is_held_against_the_next_larger_block():
    ceilings = Ceilings(2, "avx2", {100: fixed(9.0), 1000: fixed(4.0)}, {})
    assert [ceilings.read_rate(size) for size in (2, 200, 201, 5000)] == [9.0, 9.0, 4.0, 4.0]


def test_floors_follow_from_the_ceilings(device):
    slow = Ceilings(1, "avx2", {1 << 40: fixed(1e3)}, {"float32 fma": fixed(1e12), "int8 dot": fixed(1e12)})
    for case in measure_limits(device, slow, CASES, steps=2):
        linear = [part for part in case.parts if part.operation == "linear"]
        assert linear and all(part.bound == "reading" for part in linear)
        assert all(part.floor_ms == pytest.approx(part.bytes) for part in linear)  # 1 kB/s: a byte a millisecond
        assert case.step_ms == pytest.approx(sum(part.ms for part in case.parts))


def test_too_few_pages_are_refused_before_a_step(device):
    with pytest.raises(ConfigError, match="needs 17 pages"):
        measure_limits(device, Ceilings(1, "avx2", {}, {}), [Case("long", 1, 17 * 64 - 1, 1)])


def test_the_plot_is_well_formed_and_shows_every_case(device):
    ceilings = measure_ceilings(1, repeats=1)
    limits = measure_limits(device, ceilings, CASES, steps=2)
    root = ElementTree.fromstring(roofline_svg(ceilings, limits, 'a "tiny" <model>'))
    texts = ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]
    assert {"decode", "prefill"} <= set(texts) and 'a "tiny" <model>' in texts
    shown = sum(bool(part.bytes and part.operations and part.ms) for case in limits for part in case.parts)
    assert len([e for e in root.iter() if e.tag.endswith("circle")]) == shown + len(CASES)


def test_the_command_without_a_model_prints_ceilings(capsys, tmp_path):
    assert main(["limits", "--threads", "1", "--json", str(tmp_path / "limits.json")]) == 0
    assert "float32 fma" in capsys.readouterr().out
    assert json.loads((tmp_path / "limits.json").read_text())["cases"] == []


def test_a_plot_needs_a_model(capsys, tmp_path):
    assert main(["limits", "--plot", str(tmp_path / "roof.svg")]) == 1
    assert "give a MODEL" in capsys.readouterr().err
