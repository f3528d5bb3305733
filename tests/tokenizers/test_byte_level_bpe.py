"""Byte-level BPE: from GGUF metadata and from tokenizer.json, against the `tokenizers` library itself."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvern.core.errors import InvalidRequest, ModelFileError
from kvern.weights.tokenizer import load_tokenizer
from kvern.weights.tokenizer_gguf import tokenizer_from_gguf
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

# As in the tokenizer.json of Llama 3 and of Qwen2; written out so that a slip in ours shows.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _cut(expression: str) -> Any:
    split = pre_tokenizers.Split(Regex(expression), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _pre_tokenizer(family: str) -> Any:
    if family == "llama-bpe":
        return _cut(LLAMA3)
    if family == "qwen2":
        return _cut(QWEN2)
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if family == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    return whole


FAMILIES = ("default", "gpt-2", "smollm", "llama-bpe", "qwen2")


@pytest.fixture(scope="session", params=FAMILIES)
def pair(request: pytest.FixtureRequest, trained_bpe: Any, bpe_metadata: Any) -> tuple[Any, Any]:
    """(ours from GGUF metadata, the library's own) for one family."""
    library = trained_bpe(_pre_tokenizer(request.param), normalizers.NFC() if request.param == "qwen2" else None)
    metadata = bpe_metadata(library, request.param)
    if request.param == "llama-bpe":
        library.model.ignore_merges = True
    return tokenizer_from_gguf({**metadata, "tokenizer.ggml.add_bos_token": False}), library


def test_equal_on_the_corpus(pair: tuple[Any, Any], corpus: str) -> None:
    ours, library = pair
    for text in [corpus, *corpus.splitlines(keepends=True)]:
        assert ours.encode(text) == library.encode(text).ids
        assert ours.decode(ours.encode(text)) == library.decode(library.encode(text).ids)


@given(st.text(max_size=60))
def test_equal_on_any_text(pair: tuple[Any, Any], text: str) -> None:
    ours, library = pair
    ids = ours.encode(text)
    assert ids == library.encode(text).ids
    assert ours.decode(ids, skip_special=False) == library.decode(ids, skip_special_tokens=False)


@given(ids=st.lists(st.integers(0, 850), max_size=30))
def test_equal_decoding_of_any_ids(pair: tuple[Any, Any], ids: list[int]) -> None:
    ours, library = pair
    ids = [token for token in ids if token < ours.vocab_size]
    for skip in (True, False):
        assert ours.decode(ids, skip_special=skip) == library.decode(ids, skip_special_tokens=skip)


def test_special_tokens_are_recognised_only_when_asked(pair: tuple[Any, Any]) -> None:
    ours, library = pair
    text = "a<|im_end|>b"
    end = library.token_to_id("<|im_end|>")
    assert end in ours.encode(text)
    blind = ours.encode(text, parse_special=False)
    assert end not in blind
    assert ours.decode(blind) == text
    assert ours.decode(ours.encode(text)) == "ab"
    assert ours.is_special(end)
    assert not ours.is_special(ours.encode("a")[0])


def test_end_ids_hold_every_end_of_generation_token(pair: tuple[Any, Any]) -> None:
    ours, library = pair
    assert ours.eos_ids == {library.token_to_id("<|im_end|>"), library.token_to_id("<|endoftext|>")}
    assert ours.eos_id == library.token_to_id("<|im_end|>")


def test_start_token_is_added_once(trained_bpe: Any, bpe_metadata: Any) -> None:
    metadata = bpe_metadata(trained_bpe(), "gpt-2")
    ours = tokenizer_from_gguf({**metadata, "tokenizer.ggml.add_bos_token": True})
    assert ours.encode("hi")[0] == ours.bos_id
    assert ours.bos_id not in ours.encode("hi", add_special=False)


def test_lone_surrogates_are_refused_with_their_place(pair: tuple[Any, Any]) -> None:
    with pytest.raises(InvalidRequest, match="character 2"):
        pair[0].encode("ab\ud800c")


def test_unknown_ids_have_no_bytes(pair: tuple[Any, Any]) -> None:
    ours, _ = pair
    assert ours.token_bytes(10**9) == b""
    assert ours.token_bytes(-1) == b""
    assert ours.token_text(10**9) == ""
    assert ours.decode([10**9]) == ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer.ggml.pre": "deepseek-llm"}, "deepseek-llm"),
        ({"tokenizer.ggml.model": "t5"}, "t5"),
        ({"tokenizer.ggml.tokens": []}, "tokens"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokens"),
        ({"tokenizer.ggml.tokens": "abc"}, "tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type"),
        ({"tokenizer.ggml.merges": ["ab"]}, "merges"),
        ({"tokenizer.ggml.merges": ["zz qq"]}, "merges"),
        ({"tokenizer.ggml.merges": None}, "merges"),
        ({"tokenizer.ggml.bos_token_id": 10**9}, "bos_token_id"),
        ({"tokenizer.ggml.eos_token_id": -5}, "eos_token_id"),
    ],
)
def test_damaged_metadata_is_refused_by_name(
    trained_bpe: Any, bpe_metadata: Any, change: dict[str, Any], named: str
) -> None:
    metadata = bpe_metadata(trained_bpe(), "gpt-2")
    with pytest.raises(ModelFileError, match=named):
        tokenizer_from_gguf({**metadata, **change})


def test_tokenizer_json_folder(trained_bpe: Any, corpus: str, tmp_path: Path) -> None:
    library = trained_bpe()
    library.enable_truncation(max_length=5)  # a file's truncation must never shorten a prompt
    library.enable_padding(length=7)
    library.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 1]}))
    library.no_truncation()
    library.no_padding()
    ours = load_tokenizer(tmp_path)
    assert ours.encode(corpus) == library.encode(corpus).ids
    assert ours.decode(ours.encode(corpus)) == library.decode(library.encode(corpus).ids)
    assert ours.bos_id == library.token_to_id("<|im_start|>")
    assert ours.eos_ids == {5, 1, library.token_to_id("<|im_end|>"), library.token_to_id("<|endoftext|>")}
    assert ours.vocab_size == library.get_vocab_size()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"model": 1}', b"\xff\xfe", b'{"added_tokens": [{"id": 9}]}']
)
def test_broken_tokenizer_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelFileError):
        load_tokenizer(tmp_path)


def test_missing_tokenizer_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no tokenizer.json"):
        load_tokenizer(tmp_path)


def test_smollm2_equals_its_hugging_face_form(smollm2_metadata: dict[str, Any], corpus: str) -> None:
    """The reference is described independently, as a tokenizer.json (the published one's shape)."""
    texts, kinds = smollm2_metadata["tokenizer.ggml.tokens"], smollm2_metadata["tokenizer.ggml.token_type"]
    added = [
        {"id": token, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for token, (text, kind) in enumerate(zip(texts, kinds, strict=True)) if kind == 3
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    reference = Tokenizer.from_str(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {text: token for token, text in enumerate(texts)},
                  "merges": [merge.split(" ", 1) for merge in smollm2_metadata["tokenizer.ggml.merges"]]},
    }))  # fmt: skip
    ours = tokenizer_from_gguf(smollm2_metadata)
    for text in [corpus, *corpus.splitlines(keepends=True), "<|im_start|>user\nhi<|im_end|>\n"]:
        assert ours.encode(text) == reference.encode(text).ids
        assert ours.decode(ours.encode(text)) == reference.decode(reference.encode(text).ids)
    assert ours.eos_ids == {0, 2}


def test_smollm2_loads_quickly(smollm2_metadata: dict[str, Any]) -> None:
    """0.13 s measured on an idle core; processor time, so that neighbours do not count."""
    started = time.process_time()
    tokenizer_from_gguf(smollm2_metadata)
    assert time.process_time() - started < 0.6
