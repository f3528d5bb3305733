"""SmoothAttention (QServe, Lin et al., 2024, section 4.2): outlying key channels are moved into the queries.

Channel i of the rotated keys is divided by ``lambda_i = max(|K_i|, |K_{i + d/2}|) ** 0.5`` and the query's multiplied
by it, so that scores stay; a rotary pair shares its lambda, so the scale commutes with the rotation and can be folded
into the matrices (or, where heads are normed, into the norms) before it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvern.kernels.ops import AttentionSpec
from kvern.models.network import LayerWeights
from kvern.quantise.folding import Folds

ALPHA = 0.5
_SMALLEST = 1e-4  # of the largest key: channels that are all but silent are not blown up


def scales(largest: NDArray[np.float32], alpha: float = ALPHA) -> NDArray[np.float32]:
    """``largest`` |key| by channel, float32 [kv_heads, head_dim] -> lambda of the same shape, geometric mean 1."""
    half = largest.shape[1] // 2
    paired = np.maximum(largest[:, :half], largest[:, half:])
    paired = np.maximum(paired, np.float32(max(_SMALLEST * float(paired.max()), 1e-30)))
    found = np.exp(alpha * (np.log(paired) - np.log(paired).mean(axis=1, keepdims=True)))
    return np.concatenate([found, found], axis=1).astype(np.float32)


def fold(folds: Folds, layer: LayerWeights, largest: NDArray[np.float32], attention: AttentionSpec) -> None:
    """Fold the lambdas for keys of which ``largest`` is known into ``layer``."""
    if layer.key_norm is not None:  # one norm serves all heads, so all share their lambdas
        found = scales(largest.max(axis=0, keepdims=True))[0]
        folds.scale_vector(layer, "key_norm", (1 / found).astype(np.float32))
        folds.scale_vector(layer, "query_norm", found)
        return
    found = scales(largest)
    folds.scale_rows(layer, "key", (1 / found).reshape(-1).astype(np.float32))
    folds.scale_rows(layer, "query", np.repeat(found, attention.heads // attention.kv_heads, axis=0).reshape(-1))
