"""How much of the machine's ceilings each kernel of a model reaches: parts of real steps, timed where they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kvern.bench.ceilings import Ceilings
from kvern.core.errors import ConfigError
from kvern.formats import weights as weight_formats
from kvern.kernels.cpu.device import CpuDevice
from kvern.runtime.device import PAGE_TOKENS, StepBatch


@dataclass(frozen=True, slots=True)
class Case:
    """``sequences`` that have ``context`` tokens each and get ``tokens`` more in every step."""

    name: str
    sequences: int
    context: int
    tokens: int

    @property
    def rows(self) -> int:
        return self.sequences * self.tokens

    @property
    def pages(self) -> int:
        """Of all sequences."""
        return self.sequences * -(-(self.context + self.tokens) // PAGE_TOKENS)


CASES = (
    Case("decode, batch 1, context 128", 1, 128, 1),
    Case("decode, batch 1, context 1024", 1, 1024, 1),
    Case("decode, batch 32, context 128", 32, 128, 1),
    Case("prefill 512", 1, 0, 512),
)


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of work within one case, per step: milliseconds, bytes of weights or KV, operations. ``bound`` is the
    ceiling that allows it least speed ("reading", or a kind of operation; "" for work that has no floor of its own),
    ``floor_ms`` the time at that ceiling."""

    case: str
    operation: str
    unit: str
    format: str
    bound: str
    ms: float
    bytes: float
    operations: float
    floor_ms: float

    @property
    def fraction(self) -> float:
        return self.floor_ms / self.ms if self.ms else 0.0

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.bytes if self.bytes else 0.0


@dataclass(frozen=True, slots=True)
class CaseLimits:
    """``step_ms`` is the best whole step by the clock; ``floor_ms`` the sum over its parts."""

    case: Case
    step_ms: float
    floor_ms: float
    parts: tuple[Part, ...]

    @property
    def fraction(self) -> float:
        return self.floor_ms / self.step_ms

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def peak_kind(record: dict[str, Any], ceilings: Ceilings) -> str:
    """The ceiling that a part's operations belong under: the fastest instruction of this machine for its formats."""
    name = str(record["format"])
    tiles = "int8 tile" in ceilings.operations
    if record["operation"] == "attend" or not name:
        return "bf16 tile" if tiles and record["operation"] == "attend" else "float32 fma"
    activation = weight_formats.get(name.replace("_", "-") if name.startswith("w4a4") else name).activation
    if activation.startswith(("int", "mixed")):
        return "int8 tile" if tiles else "int8 dot" if "int8 dot" in ceilings.operations else "float32 fma"
    return "bf16 tile" if tiles and name == "bf16" else "float32 fma"


def measure_limits(
    device: CpuDevice, ceilings: Ceilings, cases: Sequence[Case] = CASES, steps: int = 12,
    tell: Callable[[str], None] = lambda _: None,
) -> list[CaseLimits]:  # fmt: skip
    """Runs each case ``steps`` times on ``device`` (after two to warm up) and keeps the fastest step's parts. Raises
    ConfigError when the device has too few pages or rows for a case."""
    found = []
    for case in cases:
        if case.pages > device.pages or case.rows > device.max_rows:
            raise ConfigError(f"{case.name} needs {case.pages} pages and {case.rows} rows; raise pages and max_rows")
        tell(case.name)
        found.append(_measure_case(device, ceilings, case, steps))
    return found


def _measure_case(device: CpuDevice, ceilings: Ceilings, case: Case, steps: int) -> CaseLimits:
    batch = _batch(device, case)
    weights = _weight_bytes(device)
    for _ in range(2):
        device.step(batch)
    best: list[dict[str, Any]] = []
    best_ms = float("inf")
    device.model.profile(True)
    try:
        for _ in range(steps):
            device.model.take_profile()
            device.step(batch)
            records = device.model.take_profile()
            total = sum(int(record["nanoseconds"]) for record in records) / 1e6
            if total < best_ms:
                best, best_ms = records, total
    finally:
        device.model.profile(False)
    parts = tuple(_part(case, record, ceilings, weights) for record in best)
    return CaseLimits(case, best_ms, sum(part.floor_ms for part in parts), parts)


def _part(case: Case, record: dict[str, Any], ceilings: Ceilings, weights: int) -> Part:
    kind = peak_kind(record, ceilings)
    size, operations = float(record["bytes"]), float(record["operations"])
    # A step reads all weights once before it comes back to the first: the working set is the model, not the matrix.
    reading_s = size / ceilings.read_rate(weights) if size else 0.0
    computing_s = operations / ceilings.operations[kind].median if kind in ceilings.operations else 0.0
    bound = ("reading" if reading_s >= computing_s else kind) if size or operations else ""
    return Part(
        case.name, str(record["operation"]), str(record["unit"]), str(record["format"]), bound,
        int(record["nanoseconds"]) / 1e6, size, operations, 1e3 * max(reading_s, computing_s),
    )  # fmt: skip


def _weight_bytes(device: CpuDevice) -> int:
    return device.resident_bytes() - device.page_bytes * device.pages


def _batch(device: CpuDevice, case: Case) -> StepBatch:
    """Random tokens at the end of every sequence's context. What earlier positions hold does not change the time."""
    random = np.random.default_rng(0)
    width = case.pages // case.sequences
    rows = case.rows
    one = np.arange(case.context, case.context + case.tokens, dtype=np.int32)
    ends = np.arange(1, case.sequences + 1, dtype=np.int32) * case.tokens
    return StepBatch(
        tokens=random.integers(0, device.vocab_size, rows, dtype=np.int32),
        positions=np.tile(one, case.sequences),
        row_begin=np.concatenate([[0], ends]).astype(np.int32),
        unit_begin=np.zeros(case.sequences, np.int32),
        unit_end=np.full(case.sequences, device.units, np.int32),
        block_table=np.arange(case.pages, dtype=np.int32).reshape(case.sequences, width),
        hidden=np.zeros((rows, device.hidden_size), np.float32),
        logit_rows=np.zeros(0, np.int32),
        stop=np.zeros(1, np.uint8),
        tail_slot=np.arange(case.sequences, dtype=np.int32) if device.tail_slots else None,
        greedy_rows=ends - 1,
    )
