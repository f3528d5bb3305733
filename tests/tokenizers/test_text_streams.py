"""Streaming text: any chunking gives the whole text; no split character, no part of a stop string."""

from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from kvern.text_stream import IncrementalDecoder, StopMatcher, TextStream


class ByteTokens:
    """Token i is the byte i; 256 and above are special."""

    def __init__(self, drops_first_space: bool = False) -> None:
        self.drops_first_space = drops_first_space

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b"<special>"

    def is_special(self, token: int) -> bool:
        return token >= 256


def _whole(tokens: list[int], drops_first_space: bool) -> str:
    text = bytes(token for token in tokens if token < 256).decode("utf-8", "replace")
    return text.removeprefix(" ") if drops_first_space else text


_tokens = st.one_of(
    st.text(max_size=12).map(lambda text: list(text.encode("utf-8", "replace"))),
    st.lists(st.integers(0, 257), max_size=24),
)


@given(tokens=_tokens, cuts=st.lists(st.integers(0, 24), max_size=8), drops=st.booleans())
@example(tokens=list("\u00e9\U0001f469\u200d\U0001f467".encode()), cuts=list(range(24)), drops=False)
@example(tokens=[32, 0xF0, 0x9F, 256, 0x98, 0x80, 0xF0, 0x9F], cuts=[1, 2, 3, 4], drops=True)
def test_pieces_join_to_the_whole(tokens: list[int], cuts: list[int], drops: bool) -> None:
    decoder = IncrementalDecoder(ByteTokens(drops))
    edges = sorted({0, len(tokens), *(cut for cut in cuts if cut < len(tokens))})
    pieces = [decoder.feed(tokens[begin:end]) for begin, end in itertools.pairwise(edges)]
    assert "".join(pieces) + decoder.flush() == _whole(tokens, drops)


@given(text=st.text(max_size=20))
def test_valid_text_never_shows_a_replacement_character(text: str) -> None:
    clean = text.encode("utf-8", "ignore").decode().replace("\ufffd", "")
    decoder = IncrementalDecoder(ByteTokens())
    for byte in clean.encode():
        assert "\ufffd" not in decoder.feed([byte])
    assert decoder.flush() == ""


def _cut_at_first_stop(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The obvious way: grow the text by one character until some stop string ends there."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


_small = st.text("ab\u00e9", max_size=14)


@given(
    text=_small,
    stops=st.lists(st.text("ab\u00e9", max_size=4), max_size=3),
    sizes=st.lists(st.integers(1, 4), max_size=14),
    include=st.booleans(),
)
@example(text="aab", stops=["aab", "ab"], sizes=[1, 1, 1], include=False)
@example(text="aaab", stops=["aab"], sizes=[2, 2], include=False)
def test_stop_strings_at_any_chunking(text: str, stops: list[str], sizes: list[int], include: bool) -> None:
    matcher, pieces, rest = StopMatcher(stops, include), [], text
    for size in [*sizes, len(text)]:
        pieces.append(matcher.feed(rest[:size]))
        rest = rest[size:]
        joined = "".join(pieces)
        assert _cut_at_first_stop(text, stops, include)[0].startswith(joined)
    found = "".join(pieces) + matcher.flush()
    assert (found, matcher.matched) == _cut_at_first_stop(text, stops, include)


def test_only_tokens_up_to_the_stop_belong() -> None:
    stream = TextStream(ByteTokens(), ["lo w"])
    first = stream.feed(list(b"hel"))
    assert (first.text, first.tokens, first.stopped) == ("he", 3, None)
    second = stream.feed(list(b"lo world"))
    assert (second.text, second.tokens, second.stopped) == ("l", 4, "lo w")


def test_the_stop_string_can_be_kept() -> None:
    stream = TextStream(ByteTokens(), ["END"], include_stop=True)
    assert stream.feed(list(b"the END of")).text == "the END"


def test_min_tokens_hides_early_stops() -> None:
    stream = TextStream(ByteTokens(), ["b"], min_tokens=3)
    got = stream.feed(list(b"abab"))
    assert (got.text, got.tokens, got.stopped) == ("aba", 4, "b")


def test_what_was_held_back_comes_at_the_end() -> None:
    stream = TextStream(ByteTokens(), ["stop"])
    assert stream.feed(list(b"do sto")).text == "do "
    end = stream.finish()
    assert (end.text, end.stopped) == ("sto", None)


def test_an_unfinished_character_at_the_end_is_shown_as_such() -> None:
    stream = TextStream(ByteTokens())
    assert stream.feed(list("a\u00e9".encode()[:2])).text == "a"
    assert stream.finish().text == "\ufffd"


def test_special_tokens_can_be_shown() -> None:
    assert TextStream(ByteTokens()).feed([97, 256]).text == "a"
    assert TextStream(ByteTokens(), skip_special=False).feed([97, 256]).text == "a<special>"
