"""Print the requirements of extras of pyproject.toml, one a line, so that they can be installed without kvern itself.

python tools/extra.py check build-system     # "build-system" stands for what builds the package
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(names: list[str], pyproject: Path) -> list[str]:
    """Raises KeyError for an extra that does not exist."""
    table = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    found: list[str] = []
    for name in names:
        if name == "build-system":
            found += [*table["build-system"]["requires"], "cmake", "ninja", *table["project"]["dependencies"]]
        else:
            found += table["project"]["optional-dependencies"][name]
    return found


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1:], Path(__file__).resolve().parent.parent / "pyproject.toml")))
