"""What machine a number was measured on: a number without it means nothing."""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_MIB = 2**20


@dataclass(frozen=True)
class Machine:
    """``copy_gb_s``: bytes read plus bytes written by plain copies of 256 MiB on every core, median of five, so about
    what the memory gives to anyone. ``busy_before`` is the load of others when it was measured, in cores."""

    cpu: str
    cores: int
    ghz: float
    features: tuple[str, ...]
    memory_gib: float
    copy_gb_s: float
    busy_before: float
    system: str
    python: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def copy_bandwidth(threads: int, mebibytes: int = 256, repeats: int = 5) -> float:
    """GB/s read and written by ``threads`` threads copying at once; each copies its own array."""
    import numpy as np

    sources = [np.ones(mebibytes * _MIB // 8, dtype=np.float64) for _ in range(threads)]
    targets = [np.empty_like(source) for source in sources]
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(np.copyto, targets, sources))
            rates.append(2 * threads * mebibytes * _MIB / (time.perf_counter() - start) / 1e9)
    return statistics.median(rates)


def busy_cores(seconds: float = 1.0) -> float:
    """Cores that others keep busy, measured over ``seconds``; 0 where /proc is absent."""

    def counts() -> tuple[int, int]:
        fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(fields), fields[3] + fields[4]

    try:
        total, idle = counts()
        time.sleep(seconds)
        total_after, idle_after = counts()
    except OSError:
        return 0.0
    spent = total_after - total
    return (os.cpu_count() or 1) * (1 - (idle_after - idle) / spent) if spent else 0.0


def describe() -> Machine:
    """Measure and read off this machine; takes a few seconds."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = re.findall(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    clocks = [float(word) for word in re.findall(r"^cpu MHz\s*:\s*(\S+)$", text, re.MULTILINE)]
    flags = set((re.findall(r"^flags\s*:\s*(.+)$", text, re.MULTILINE) or [""])[0].split())
    cores = len(os.sched_getaffinity(0))
    busy = busy_cores()
    return Machine(
        cpu=names[0] if names else platform.processor(),
        cores=cores,
        ghz=round(statistics.median(clocks) / 1000, 2) if clocks else 0.0,
        features=tuple(name for name in _FEATURES if name in flags),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        copy_gb_s=round(copy_bandwidth(cores), 1),
        busy_before=round(busy, 2),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )
