"""kv4-hadamard: kv4-token whose keys are rotated first, so that no channel stands out (SAW-INT4).

Keys are turned by an orthonormal Hadamard matrix after the rotary embedding, and queries by the same one, which
leaves every score as it was. Values are as in kv4-token.
"""

from __future__ import annotations

from kvern.formats import hadamard, uint4
from kvern.formats.kv import kv4_token
from kvern.formats.kv_format import Coding, KvFormat, Vectors


def stored(keys: Vectors) -> Vectors:
    """What a query that is not rotated sees."""
    return hadamard.rotate(uint4.stored(hadamard.rotate(keys)))


CODING = Coding("hadamard4", bits=4, stored=stored, vector_bytes=4)
FORMAT = KvFormat("kv4-hadamard", keys=CODING, values=kv4_token.CODING)
