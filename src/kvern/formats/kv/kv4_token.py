"""kv4-token: 4-bit codes with a step and a low, float16, for each token and head (QServe's KV4).

QServe keeps a zero point in float16; here the value of code 0 is kept instead, which is the same line with less
rounding. Every token is written at once and never again, so pages can be shared and edited freely.
"""

from __future__ import annotations

from kvern.formats import uint4
from kvern.formats.kv_format import Coding, KvFormat

CODING = Coding("token4", bits=4, stored=uint4.stored, vector_bytes=4)
FORMAT = KvFormat("kv4-token", keys=CODING, values=CODING)
