"""``kvern quantize MODEL --format NAME``: one self-contained file in another number format, and a report."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from kvern.cli.stage_bar import StageBar
from kvern.core.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from kvern.assembly.recipes import NAMES

    parser.add_argument("model", metavar="MODEL", help="a name (see kvern pull), a .gguf file, or a folder")
    parser.add_argument("--format", required=True, choices=NAMES, help="what to make; mixed searches by --target-kl")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: NAME.FORMAT.safetensors here")
    parser.add_argument(
        "--calibration", type=Path, metavar="TEXTFILE", help="default: text that the model itself writes"
    )
    parser.add_argument("--calibration-tokens", type=_above_zero, default=8192, metavar="N", help="default: 8192")
    parser.add_argument("--held-out", type=Path, metavar="TEXTFILE", help="to measure on; default: kvern's own text")
    parser.add_argument("--threads", type=_above_zero, metavar="N", help="of the cpu back end; default: one per core")
    parser.add_argument("--target-kl", type=float, metavar="NATS", help="of --format mixed: mean KL to keep")
    parser.add_argument("--seed", type=int, default=0, help="of the text that the model writes; default: 0")
    parser.add_argument(
        "--method", choices=("nearest", "clip search", "compensated"), help="of rounding; default: the format's best"
    )
    parser.add_argument("--embedding-format", metavar="FORMAT", help="of embedding and output; default: as all")
    parser.add_argument("--backend", choices=("cpu", "reference"), help="default: cpu where it has the kernels")
    parser.add_argument(
        "--report", action=argparse.BooleanOptionalAction, default=True, help="measure the file; default: yes"
    )
    parser.add_argument("--base-format", default="f32", metavar="FORMAT", help="of the model compared with (f32)")


def _above_zero(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above zero")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Print the report; the path of the file is the last line of standard output."""
    from kvern.assembly.quantiser import QuantiseOptions, quantise_model, report_paths
    from kvern.assembly.recipes import MIXED

    mixed = arguments.format == MIXED
    if arguments.target_kl is not None and not 0 < arguments.target_kl < math.inf:
        raise ConfigError(f"--target-kl {arguments.target_kl}: it must be above zero, in nats per token")
    if mixed != (arguments.target_kl is not None):
        raise ConfigError("--target-kl goes with --format mixed, and --format mixed needs it")
    options = QuantiseOptions(
        model=arguments.model,
        format=arguments.format,
        out=arguments.output,
        calibration=arguments.calibration,
        calibration_tokens=arguments.calibration_tokens,
        held_out=arguments.held_out,
        threads=arguments.threads,
        seed=arguments.seed,
        method=arguments.method,
        ends=arguments.embedding_format,
        base=arguments.base_format,
        backend=arguments.backend,
        report=arguments.report,
    )
    with StageBar() as bar:
        if mixed:
            from kvern.assembly.mixed import quantise_mixed

            path, report = quantise_mixed(options, arguments.target_kl, bar)
        else:
            path, report = quantise_model(options, bar)
    if report is not None:
        print("\n".join(report.lines()))
        print(f"report        {' and '.join(map(str, report_paths(path)))}")
    print(path)
    return 0
