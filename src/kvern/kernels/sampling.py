"""What a sampler is given: the parameters of E rows of logits, gathered from their requests."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Numbers = NDArray[np.float32]

GREEDY_BELOW = 1e-5  # temperatures below this are greedy

# Why a row got no token.
FAULT_NONE, FAULT_NOT_FINITE, FAULT_NOTHING_ALLOWED = range(3)


class SampleParameters(Protocol):
    """Columns have E entries. Lists of ids are flat: those of row r are ``x_ids[x_begin[r]:x_begin[r + 1]]``.

    Order of effect: allowed ids, banned ids and bias; penalties; temperature; min-p; top-k; top-p; then one uniform
    number by (seed, choice, position) picks among the candidates sorted by (logit descending, id ascending).
    """

    temperature: Numbers  # 0 is greedy: the highest logit, ties to the lowest id
    top_p: Numbers  # (0, 1]
    min_p: Numbers  # [0, 1]
    top_k: Ids  # 0 or less: off
    repetition_penalty: Numbers  # over prompt and generated tokens; 1 is off
    presence_penalty: Numbers  # over generated tokens
    frequency_penalty: Numbers
    seed: NDArray[np.uint64]
    choice: NDArray[np.uint32]
    position: Ids  # where the new token will stand
    prompt_tokens: Ids  # how many of the row's history are prompt
    history_ids: Ids  # may be empty for rows without penalties
    history_begin: Ids
    bias_ids: Ids
    bias_begin: Ids
    bias_values: Numbers  # one for each of ``bias_ids``
    allowed_ids: Ids  # none: all
    allowed_begin: Ids
    banned_ids: Ids
    banned_begin: Ids


def likeliest(logits: Numbers) -> Ids:
    """The id of each row's highest logit [E] of logits [E, V]; the lowest of equal ones.

    -1 for a row with a NaN, with +infinity, or with nothing above -infinity.
    """
    highest = logits.argmax(axis=1)  # the first NaN where there is one
    found: Ids = np.where(np.isfinite(logits[np.arange(len(logits)), highest]), highest, -1).astype(np.int32)
    return found
