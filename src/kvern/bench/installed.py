"""How much disk kvern takes: its own distribution and all that it requires, file by file."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

LIMIT_BYTES = 200 * 10**6


def required(name: str = "kvern") -> list[str]:
    """``name`` and all it requires without extras, sorted. Raises PackageNotFoundError when ``name`` is absent."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        current = _normal(waiting.pop())
        if current in found:
            continue
        try:
            wants = metadata.requires(current) or []
        except metadata.PackageNotFoundError:
            if current == _normal(name):
                raise
            continue  # a requirement of another platform
        found.add(current)
        for want in wants:
            requirement, _, marker = want.partition(";")
            if "extra" not in marker:
                waiting.append(re.split(r"[\s<>=!~\[(]", requirement.strip())[0])
    return sorted(found)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def sizes(name: str = "kvern") -> dict[str, int]:
    """Bytes on disk of each required distribution, largest first."""
    found = {}
    for distribution in required(name):
        total = 0
        for file in metadata.files(distribution) or []:
            try:
                total += Path(str(file.locate())).stat().st_size
            except OSError:
                continue  # listed, but removed since: bytecode, for example
        found[distribution] = total
    return dict(sorted(found.items(), key=lambda item: -item[1]))
