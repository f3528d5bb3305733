"""SentencePiece-style BPE against the SentencePiece library: random small vocabularies, and Gemma 3's."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvern.core.errors import ModelFileError
from kvern.weights.tokenizer_gguf import tokenizer_from_gguf

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_CHARACTERS = "ab\u2581\u00e9"


def small_vocabulary(pieces: list[str], user: list[str], unused: list[str], byte_fallback: bool) -> dict[str, Any]:
    """GGUF metadata of a vocabulary: pieces in the order of their scores, best first."""
    rows: list[tuple[str, float, int]] = [
        ("<unk>", 0.0, _UNKNOWN), ("<s>", 0.0, _CONTROL), ("</s>", 0.0, _CONTROL), ("<end_of_turn>", 0.0, _CONTROL)
    ]  # fmt: skip
    if byte_fallback:
        rows += [(f"<0x{byte:02X}>", 0.0, _BYTE) for byte in range(256)]
    rows += [(text, -1000.0, _USER) for text in user]
    for rank, text in enumerate([*pieces, "a", "b", "\u2581"]):
        if text not in {row[0] for row in rows}:
            rows.append((text, -float(rank), _UNUSED if text in unused else _NORMAL))
    texts, scores, kinds = map(list, zip(*rows, strict=True))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


_pieces = st.text(_CHARACTERS, min_size=2, max_size=4)
_vocabularies = st.builds(
    small_vocabulary,
    st.lists(_pieces, max_size=14, unique=True),
    st.lists(st.sampled_from(["\u2581\u2581", "\u2581\u2581\u2581", "aab", "bb", "\n\n"]), max_size=3, unique=True),
    st.lists(st.sampled_from(["ab", "aa", "aab", "\u2581a"]), max_size=2, unique=True),
    st.booleans(),
)


@settings(max_examples=400, deadline=None)
@given(
    metadata=_vocabularies,
    space_prefix=st.booleans(),
    texts=st.lists(st.text("ab \u00e9\u2581\nxyz<", max_size=16), min_size=1, max_size=4),
)
def test_equal_on_random_vocabularies(
    sentencepiece_reference: Any, metadata: dict[str, Any], space_prefix: bool, texts: list[str]
) -> None:
    metadata = {**metadata, "tokenizer.ggml.add_space_prefix": space_prefix}
    ours, reference = tokenizer_from_gguf(metadata), sentencepiece_reference(metadata)
    for text in texts:
        assert ours.encode(text, add_special=False) == reference.encode(text)


def test_leftmost_of_equal_scores_merges_first(sentencepiece_reference: Any) -> None:
    """A merge list (one rank per pair) would take "a" + "aa" and "aa" + "a" in a fixed order instead."""
    metadata = small_vocabulary(["aa", "aaa"], [], [], byte_fallback=False)
    ours, reference = tokenizer_from_gguf(metadata), sentencepiece_reference(metadata)
    for size in range(1, 12):
        assert ours.encode("a" * size, add_special=False) == reference.encode("a" * size)


def test_a_piece_with_a_space_inside_joins_words(sentencepiece_reference: Any) -> None:
    metadata = small_vocabulary(["a\u2581", "a\u2581b"], [], [], byte_fallback=True)
    ours, reference = tokenizer_from_gguf(metadata), sentencepiece_reference(metadata)
    for text in ("a b a b", "b a  b", " a b"):
        assert ours.encode(text, add_special=False) == reference.encode(text)


@pytest.fixture(scope="session")
def gemma(gemma_metadata: dict[str, Any]) -> Any:
    return tokenizer_from_gguf(gemma_metadata)


@pytest.fixture(scope="session")
def gemma_reference(gemma_metadata: dict[str, Any], sentencepiece_reference: Any) -> Any:
    return sentencepiece_reference(gemma_metadata)


def test_gemma_equals_sentencepiece_on_the_corpus(gemma: Any, gemma_reference: Any, corpus: str) -> None:
    for text in [corpus, *corpus.splitlines(keepends=True)]:
        ids = gemma.encode(text, add_special=False, parse_special=False)
        assert ids == gemma_reference.encode(text)
        assert gemma.decode(ids, skip_special=False) == text.replace("\u2581", " ")


@given(text=st.text(max_size=60))
@settings(deadline=None)
def test_gemma_equals_sentencepiece_on_any_text(gemma: Any, gemma_reference: Any, text: str) -> None:
    assert gemma.encode(text, add_special=False, parse_special=False) == gemma_reference.encode(text)


def test_gemma_special_tokens(gemma: Any) -> None:
    turn = "<start_of_turn>user\nhi<end_of_turn>\n"
    ids = gemma.encode(turn)
    assert ids[0] == gemma.bos_id == 2
    assert gemma.token_text(ids[1]) == "<start_of_turn>"
    assert gemma.eos_ids == {1, 106}
    assert gemma.decode(ids) == "user\nhi\n"
    assert gemma.decode(ids[1:], skip_special=False) == turn
    assert 106 not in gemma.encode("<end_of_turn>", parse_special=False)


def test_gemma_loads_quickly(gemma_metadata: dict[str, Any]) -> None:
    """0.46 s measured on an idle core; processor time, so that neighbours do not count."""
    started = time.process_time()
    tokenizer_from_gguf(gemma_metadata)
    assert time.process_time() - started < 1.5


def test_bytes_of_tokens(gemma: Any) -> None:
    ids = gemma.encode("\U00010348 x", add_special=False)  # Gothic: falls back to bytes
    assert b"".join(map(gemma.token_bytes, ids)).decode() == "\U00010348 x"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer.ggml.scores": None}, "scores"),
        ({"tokenizer.ggml.scores": [0.0]}, "scores"),
        ({"tokenizer.ggml.scores": "no"}, "scores"),
        ({"tokenizer.ggml.unknown_token_id": 10**6}, "unknown_token_id"),
    ],
)
def test_damaged_metadata_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelFileError, match=named):
        tokenizer_from_gguf({**small_vocabulary(["ab"], [], [], byte_fallback=False), **change})


def test_a_gap_in_the_byte_tokens_is_refused() -> None:
    metadata = small_vocabulary(["ab"], [], [], byte_fallback=True)
    metadata["tokenizer.ggml.tokens"] = [
        "hole" if text == "<0x41>" else text for text in metadata["tokenizer.ggml.tokens"]
    ]
    with pytest.raises(ModelFileError, match="0x41"):
        tokenizer_from_gguf(metadata)


def test_a_chain_of_prefixes_ends_in_an_error_not_in_a_crash() -> None:
    metadata = small_vocabulary([], ["b" * size for size in range(2, 3000)], [], byte_fallback=True)
    with pytest.raises(ModelFileError, match="prefixes"):
        tokenizer_from_gguf(metadata)
