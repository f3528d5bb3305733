"""The thinking wing runs without arrays, and reads no clock, chance, file or socket."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import kvern.core

PROGRAM = """
import sys
for name in ("numpy", "time", "random", "socket", "asyncio", "threading", "datetime", "secrets"):
    sys.modules.pop(name, None)
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"numpy", "random", "socket", "asyncio", "secrets"}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
import msgspec
import kvern.engine.core, kvern.engine.replay
from kvern.policies.table import TABLE
import importlib
for table in TABLE.values():
    for place in table.values():
        importlib.import_module(place.split(":")[0])
print("numpy" in sys.modules)
"""


def test_core_policies_sched_kv_and_engine_core_import_without_arrays() -> None:
    source = str(Path(kvern.core.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env={"PYTHONPATH": source}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
