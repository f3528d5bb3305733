"""``kvern formats``: which number formats there are, and what goes with what."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "any KV format goes with any weight format; --kv-format also takes KEYS/VALUES of two"


def run(arguments: argparse.Namespace) -> int:
    del arguments
    from kvern.assembly.capable import native_serves
    from kvern.formats.capabilities import kv_lines, weight_lines

    print(f"{'weights':<12} {'bits':>5}  {'made':<14} inputs (the first is auto; * on the reference back end alone)")
    for line in weight_lines():
        made = "at load" if line.at_load else "kvern quantize"
        inputs = [
            form.replace(" ", "-") + ("" if native_serves(line.name, form) else "*") for form in line.activations
        ]
        print(f"{line.name.lower():<12} {line.bits:>5.2f}  {made:<14} {', '.join(inputs)}")
    print(f"\n{'KV':<12} {'bits':>5}  {'back ends':<14} prefix cache")
    for kv in kv_lines():
        bits = "/".join(dict.fromkeys(map(str, kv.bits)))
        print(f"{kv.name:<12} {bits:>5}  {', '.join(kv.backends):<14} {'shared' if kv.shared else 'not shared'}")
    return 0
