"""Disk space of kvern and everything it requires, by package. Exits 1 above the limit.

    python benchmarks/install_size.py [--json]

Run it in an environment that kvern was installed into (``make serve`` and ``make test`` make one).
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import PackageNotFoundError

from kvern.bench.installed import LIMIT_BYTES, sizes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        found = sizes()
    except PackageNotFoundError:
        print("kvern is not installed here (running from a checkout?): pip install . first", file=sys.stderr)
        return 2
    total = sum(found.values())
    if arguments.json:
        print(json.dumps({"packages": found, "total": total, "limit": LIMIT_BYTES}))
    else:
        for name, size in found.items():
            print(f"{name:<24}{size / 1e6:>10.1f} MB")
        print(f"{'total':<24}{total / 1e6:>10.1f} MB of {LIMIT_BYTES / 1e6:.0f}")
    return 1 if total > LIMIT_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
