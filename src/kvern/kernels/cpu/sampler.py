"""The native sampler (native/kernels/sample.cpp): rows shared out over the pool, the GIL released."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvern import _native
from kvern.kernels.sampling import Ids, Numbers, SampleParameters


@dataclass(frozen=True, slots=True)
class CpuSampler:
    """Implements ``kvern.runtime.sampler.SampleKernel``. A row's token never depends on the rows beside it."""

    pool: _native.Pool

    def choose_tokens(self, logits: Numbers, batch: SampleParameters) -> tuple[Ids, NDArray[np.uint8]]:
        """Tokens [E] of logits [E, V], -1 where there is none, and why (FAULT_* of ``kvern.kernels.sampling``).

        Raises ValueError for parameters out of range or ids outside the vocabulary.
        """
        tokens, faults = _native.choose_tokens(self.pool, np.ascontiguousarray(logits, np.float32), batch)
        return tokens, faults

    def score_tokens(self, logits: Numbers, tokens: Ids, top: int) -> tuple[Numbers, Ids, Ids, Numbers]:
        """Log-probability [E] and rank [E] of ``tokens``, and the ``top`` most likely ids and theirs [E, top].

        Raises ValueError for a token outside the vocabulary or more than V wanted.
        """
        rows = np.ascontiguousarray(logits, np.float32)
        logprobs, ranks, top_ids, top_logprobs = _native.score_tokens(
            self.pool, rows, np.ascontiguousarray(tokens, np.int32), top
        )
        return logprobs, ranks, top_ids, top_logprobs
