"""Frames: whole or in pieces, and everything that must be refused."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvern.core.events import Delta
from kvern.core.request import Request, Sampling
from kvern.engine import wire

MESSAGES = [
    wire.Submit(Request(7, (1, 2, 3), Sampling(stop_token_ids=(2,), logit_bias=((1, 0.5),)), cache_salt=b"x")),
    wire.Abort(7, "gone"),
    wire.StatsWanted(),
    wire.Deltas((Delta(7, (1, 2), finish="stop", stop_token=2), Delta(8))),
    wire.Failed("PlanError", "too small"),
    wire.Shutdown(),
]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=50))
def test_messages_survive_any_cutting(sizes) -> None:
    stream = b"".join(map(wire.encode, MESSAGES))
    reader, found, at, turn = wire.FrameReader(), [], 0, 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        found += reader.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert found == MESSAGES


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (struct.pack("<4sHHI", b"HTTP", 1, 1, 4), "not a kvern frame"),
        (struct.pack("<4sHHI", b"KVRN", 99, 1, 4), "protocol 99"),
        (struct.pack("<4sHHI", b"KVRN", 1, 1, wire.MAX_BODY + 1), "over the cap"),
        (struct.pack("<4sHHI", b"KVRN", 1, 77, 4), "unknown message kind 77"),
    ],
)
def test_bad_headers_are_refused_before_the_body_is_read(header, reason) -> None:
    with pytest.raises(wire.WireError, match=reason):
        wire.FrameReader().feed(header)


@given(st.binary(max_size=200), st.sampled_from(list(wire.Kind)))
def test_no_body_raises_anything_but_wire_error(body, kind) -> None:
    with contextlib.suppress(wire.WireError):
        wire.decode(kind, body)


def test_a_message_over_the_cap_is_not_sent(monkeypatch) -> None:
    monkeypatch.setattr(wire, "MAX_BODY", 100)
    with pytest.raises(wire.WireError, match="over the cap"):
        wire.encode(wire.Abort(1, "x" * 101))
