"""Makes format_vectors.npz with the ``gguf`` package: for each block format, bytes and what gguf decodes them to.

Half of the rows are random bytes (every field takes every value, infinities and NaNs included), half are encoded
numbers with ordinary scales. Run: python tests/data/make_format_vectors.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from kvern.formats import weights

COLUMNS = 512
NAMES = ("BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


def main() -> None:
    draw = np.random.default_rng(20261121)
    vectors = {}
    for name in NAMES:
        kind = weights.get(name)
        noise = draw.integers(0, 256, (3, kind.row_bytes(COLUMNS)), np.uint8)
        encoded = kind.encode(draw.standard_normal((3, COLUMNS)).astype(np.float32))
        raw = np.concatenate([noise, encoded])
        with np.errstate(all="ignore"):
            decoded = dequantize(raw, GGMLQuantizationType[name])
        vectors[f"{name}.raw"] = raw
        vectors[f"{name}.bits"] = decoded.view(np.uint32)
    np.savez_compressed(Path(__file__).with_name("format_vectors.npz"), **vectors)


if __name__ == "__main__":
    main()
