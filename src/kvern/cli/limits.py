"""``kvern limits [MODEL]``: this machine's measured ceilings, and how much of them the engine's kernels reach."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kvern.config.schema import parse_count
from kvern.core.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a name, a file, a folder; none: ceilings only")
    parser.add_argument("--threads", type=parse_count, default=os.cpu_count() or 1, help="default: all")
    parser.add_argument("--weight-format", default="file", metavar="NAME", help="as in kvern serve (default: file)")
    parser.add_argument("--kv-format", default="bf16", metavar="NAME", help="as in kvern serve (default: bf16)")
    parser.add_argument("--steps", type=parse_count, default=12, metavar="N", help="of each case (default: 12)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a roofline plot (SVG)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")


def run(arguments: argparse.Namespace) -> int:
    from kvern.bench.ceilings import measure_ceilings
    from kvern.bench.machine import describe

    if arguments.plot and not arguments.model:
        raise ConfigError("--plot shows a model's kernels under the ceilings: give a MODEL")
    machine = describe()
    ceilings = measure_ceilings(arguments.threads, tell=_tell)
    print(f"{machine.cpu}, {ceilings.isa} kernels, {ceilings.threads} threads")
    print(f"others keep {machine.busy_before} cores busy")
    print(ceilings_table(ceilings))
    limits: Sequence[Any] = _model_limits(arguments, ceilings) if arguments.model else ()
    for case in limits:
        print(f"\n{case.case.name}: {case.step_ms:.2f} ms a step, {100 * case.fraction:.0f} % of the floor")
        print(parts_table(case))
    if arguments.plot:
        from kvern.bench.roofline_plot import roofline_svg

        arguments.plot.write_text(roofline_svg(ceilings, limits, f"{arguments.model} on {machine.cpu}"))
        _tell(f"wrote {arguments.plot}")
    if arguments.json:
        everything: dict[str, Any] = {"machine": machine.as_json(), "ceilings": asdict(ceilings)}
        everything["cases"] = [case.as_json() for case in limits]
        arguments.json.write_text(json.dumps(everything, indent=1))
    return 0


def _model_limits(arguments: argparse.Namespace, ceilings: Any) -> Sequence[Any]:
    from kvern.assembly.model import DeviceOptions, make_device, open_model
    from kvern.bench.limits import CASES, measure_limits
    from kvern.kernels.cpu.device import CpuDevice
    from kvern.weights.hub import resolve

    _tell(f"loading {arguments.model}")
    model = open_model(resolve(arguments.model))
    options = DeviceOptions(
        weight_format=arguments.weight_format, kv_format=arguments.kv_format, threads=arguments.threads,
        pages=max(case.pages for case in CASES), max_rows=max(case.rows for case in CASES),
    )  # fmt: skip
    device = make_device(model, options)
    model.close()
    assert isinstance(device, CpuDevice)  # the options ask for no other
    return measure_limits(device, ceilings, steps=arguments.steps, tell=_tell)


def ceilings_table(ceilings: Any) -> str:
    """Medians, with smallest and largest."""
    lines = []
    for size, rate in ceilings.read.items():
        name = f"read {size >> 20} MiB a thread" if size >= 1 << 20 else f"read {size >> 10} KiB a thread"
        lines.append(f"  {name:<28}{_rate(rate)} GB/s")
    for kind, rate in ceilings.operations.items():
        lines.append(f"  {kind:<28}{_rate(rate)} Gop/s")
    return "\n".join(lines)


def _rate(rate: Any) -> str:
    return f"{rate.median / 1e9:9.1f} ({rate.low / 1e9:.1f}-{rate.high / 1e9:.1f})"


def parts_table(case: Any) -> str:
    """One line for each kind of work of a step, the slowest first."""
    lines = [f"  {'part':<44}{'ms':>9}{'share':>8}{'floor':>9}{'reached':>9}  held against"]
    for part in sorted(case.parts, key=lambda part: -part.ms):
        name = f"{part.operation}, {part.unit}" + (f", {part.format}" if part.format else "")
        reached = f"{100 * part.fraction:.0f} %" if part.floor_ms else "-"
        lines.append(
            f"  {name:<44}{part.ms:>9.3f}{100 * part.ms / case.step_ms:>7.0f}%{part.floor_ms:>9.3f}{reached:>9}"
            f"  {part.bound}"
        )
    return "\n".join(lines)


def _tell(text: str) -> None:
    print(f"kvern limits: {text}", file=sys.stderr, flush=True)
