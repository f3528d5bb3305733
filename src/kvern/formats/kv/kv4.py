"""kv4: full pages in 4 bits, keys by channel and values by token; the newest 65 to 128 tokens in bf16 (after KIVI).

Key outliers sit in fixed channels, so each channel of a page has its own step and low; that needs a full page. The
page a row is in and the one before it are therefore read in bf16, out of the sequence's tail.
"""

from __future__ import annotations

from kvern.formats import uint4
from kvern.formats.kv import kv4_token
from kvern.formats.kv_format import Coding, KvFormat, Vectors

_TOKEN_AXIS = -3


def stored(keys: Vectors) -> Vectors:
    """float32 [..., 64, heads, head_dim]: whole pages."""
    return uint4.stored(keys, axis=_TOKEN_AXIS)


CODING = Coding("channel4", bits=4, stored=stored, channel_bytes=4, by_page=True)
FORMAT = KvFormat("kv4", keys=CODING, values=kv4_token.CODING, tail=True)
