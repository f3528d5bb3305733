"""f32 KV: nothing is rounded. For the reference back end only."""

from __future__ import annotations

from kvern.formats.kv_format import Coding, KvFormat, Vectors


def stored(vectors: Vectors) -> Vectors:
    return vectors


_CODING = Coding("f32", bits=32, stored=stored)
FORMAT = KvFormat("f32", keys=_CODING, values=_CODING)
