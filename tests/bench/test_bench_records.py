"""The benchmarks' bookkeeping: medians, ratios, and the page that is filled in."""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from kvern.bench.installed import required, sizes
from kvern.bench.machine import busy_cores, copy_bandwidth

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


records = load("records")


def test_turns_are_taken_one_at_a_time() -> None:
    order: list[str] = []

    def ours() -> float:
        order.append("ours")
        return float(len(order))

    def peer() -> dict[str, float]:
        order.append("peer")
        return {"a": 1.0, "b": 2.0}

    mine, theirs = records.alternate(3, ours, peer)
    assert order == ["ours", "peer"] * 3
    assert mine.values == (1.0, 3.0, 5.0)
    assert theirs["b"].values == (2.0, 2.0, 2.0)


def test_the_ratio_is_to_the_peers_best_and_above_one_when_ours_is_better() -> None:
    measured = records.Measured
    rate = records.Row("r", "tokens/s", measured((30.0,)), {"x": measured((10.0,)), "y": measured((20.0,))})
    wait = records.Row("w", "s", measured((2.0,)), {"x": measured((1.0,)), "y": measured((3.0,))}, best=min)
    assert rate.ratio() == 1.5
    assert wait.ratio() == 0.5
    assert records.Row("alone", "s", measured((2.0,))).ratio() is None


def test_the_table_shows_median_and_spread() -> None:
    row = records.Row(
        "decode", "tokens/s", records.Measured((110.0, 100.0, 130.0)), {"fa on": records.Measured((55.0,))}
    )
    assert "| decode | tokens/s | 110 (100-130) | 55.0 (55.0-55.0) | 2.00 |" in records.markdown([row])


def test_only_the_marked_section_of_a_page_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{records.BEGIN}\nold\n{records.END}\nafter\n")
    records.write_section(page, "new")
    assert page.read_text() == f"before\n{records.BEGIN}\nnew\n{records.END}\nafter\n"
    page.write_text("no markers\n")
    with pytest.raises(ValueError, match="markers"):
        records.write_section(page, "new")


def test_the_performance_page_has_its_markers() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    assert page.count(records.BEGIN) == page.count(records.END) == 1


def test_requirements_are_followed_and_extras_are_not() -> None:
    found = required("httpx")
    assert {"httpx", "httpcore", "h11", "anyio", "idna"} <= set(found)
    assert "h2" not in found  # only of an extra


def test_sizes_are_those_of_the_files_on_disk() -> None:
    files = metadata.files("jinja2") or []
    assert sizes("jinja2")["jinja2"] == sum(
        Path(str(f.locate())).stat().st_size for f in files if f.locate().exists()
    )


def test_an_absent_package_is_an_error() -> None:
    with pytest.raises(metadata.PackageNotFoundError):
        sizes("a-package-that-nobody-made")


def test_the_machine_is_measured() -> None:
    assert 0.1 < copy_bandwidth(1, mebibytes=16, repeats=3) < 10_000
    assert 0.0 <= busy_cores(0.05) <= 1024
