"""Keys, values and queries for the attention kernels alone, and what float64 makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvern.formats import kv as kv_formats

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """``rows`` queries at the last positions of ``tokens`` tokens. ``kv_format`` may be "<keys>/<values>"."""

    kv_format: str
    heads: int
    kv_heads: int
    dim: int
    tokens: int
    rows: int
    window: int = 0
    seed: int = 0

    def keys_and_values(self) -> tuple[Rows, Rows]:
        draw = np.random.default_rng(self.seed)
        k, v = (draw.standard_normal((self.tokens, self.kv_heads, self.dim), np.float32) for _ in range(2))
        return k, v

    def queries(self) -> Rows:
        draw = np.random.default_rng(self.seed + 1)
        return 2 * draw.standard_normal((self.rows, self.heads, self.dim), np.float32)

    @property
    def first(self) -> int:
        return self.tokens - self.rows

    @property
    def scale(self) -> float:
        return float(self.dim**-0.5)

    def store(self, module: ModuleType, isa: str) -> Any:
        """A KvStore of ``module`` with the tokens, and room for whole pages."""
        store = module.KvStore(self.kv_format, self.kv_heads, self.dim, self.tokens)
        store.append(*self.keys_and_values(), isa)
        return store

    def exact(self) -> NDArray[np.float64]:
        """float64 attention [rows, heads, dim] over what the format keeps of keys and values."""
        names = self.kv_format.split("/")
        k, v = self.keys_and_values()
        k = kv_formats.get(names[0]).keys.stored(k).astype(np.float64)
        v = kv_formats.get(names[-1]).values.stored(v).astype(np.float64)
        q, group = self.queries().astype(np.float64), self.heads // self.kv_heads
        position, token = self.first + np.arange(self.rows)[:, None], np.arange(self.tokens)[None, :]
        seen = (token <= position) & (token > position - (self.window or self.tokens))
        out = np.empty_like(q)
        for head in range(self.heads):
            scores = np.where(seen, q[:, head] @ k[:, head // group].T * self.scale, -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, head] = weights @ v[:, head // group] / weights.sum(axis=1, keepdims=True)
        return out


def run(module: ModuleType, case: Case, isa: str, together: int = 1, split: bool = False) -> Rows:
    out: Rows = case.store(module, isa).attend(
        case.queries(), case.first, case.scale, case.window, together=together, split=split, isa=isa
    )
    return out


def check(module: ModuleType, case: Case, isa: str, together: int = 1) -> None:
    """Within float32 rounding of ``exact``; bf16 operands of AMX tiles round queries and weights to 2^-9."""
    rounded = isa == "amx" and "bf16" in case.kv_format
    found, wanted = run(module, case, isa, min(together, 96 // (case.heads // case.kv_heads))), case.exact()
    assert np.abs(found - wanted).max() < (0.05 if rounded else 2e-3 if "kv8" in case.kv_format else 5e-5), isa
