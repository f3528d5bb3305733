"""bf16 KV: keys and values rounded to bfloat16, nearest even."""

from __future__ import annotations

from kvern.formats import bfloat16
from kvern.formats.kv_format import Coding, KvFormat, Vectors


def stored(vectors: Vectors) -> Vectors:
    return bfloat16.from_bits(bfloat16.to_bits(vectors))


_CODING = Coding("bf16", bits=16, stored=stored)
FORMAT = KvFormat("bf16", keys=_CODING, values=_CODING)
