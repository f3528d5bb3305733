"""tokenizer.json files of the SentencePiece kind, and what post-processors put around a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvern.core.errors import ModelFileError
from kvern.weights.tokenizer import Tokenizer, load_tokenizer

MARK = "\u2581"
PIECES = [
    "<unk>", "<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)),
    MARK, "a", "b", "\u00e9", "ab", MARK + "a", MARK + "ab", "<end_of_turn>",
]  # fmt: skip
MERGES = [["a", "b"], [MARK, "a"], [MARK, "ab"]]
SPECIAL = ("<unk>", "<bos>", "<eos>", "<end_of_turn>")
REPLACE = {"type": "Replace", "pattern": {"String": MARK}, "content": " "}
GEMMA_LIKE = {
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": MARK},
    "decoder": {"type": "Sequence", "decoders": [REPLACE, {"type": "ByteFallback"}, {"type": "Fuse"}]},
}
LLAMA2_LIKE = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": MARK},
            {"type": "Replace", "pattern": {"String": " "}, "content": MARK},
        ],
    },
    "decoder": {
        "type": "Sequence",
        "decoders": [
            REPLACE,
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    },
}
METASPACE = {
    "pre_tokenizer": {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "always", "split": True},
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "ByteFallback"},
            {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "always", "split": True},
        ],
    },
}


def _file(parts: dict[str, Any]) -> dict[str, Any]:
    ids = {text: token for token, text in enumerate(PIECES)}
    added = [
        {"id": ids[text], "content": text, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for text in SPECIAL
    ]  # fmt: skip
    start = {"id": "<bos>", "ids": [ids["<bos>"]], "tokens": ["<bos>"]}
    single = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    around = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {"<bos>": start}}
    model = {
        "type": "BPE",
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": ids,
        "merges": MERGES,
    }
    return {"version": "1.0", "added_tokens": added, "post_processor": around, "model": model, **parts}


@pytest.fixture(params=[GEMMA_LIKE, LLAMA2_LIKE, METASPACE], ids=["gemma", "llama2", "metaspace"], scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """(ours, the library's own) for one style."""
    from tokenizers import Tokenizer as Library

    folder = tmp_path_factory.mktemp("styles")
    text = json.dumps(_file(request.param))
    (folder / "tokenizer.json").write_text(text)
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", "eos_token": "<eos>"}))
    return load_tokenizer(folder), Library.from_str(text)


@settings(deadline=None)
@given(text=st.text("ab \u00e9\n\u4e16\U0001f600", max_size=20))
def test_equal_both_ways(pair: tuple[Tokenizer, Any], text: str) -> None:
    ours, library = pair
    ids = library.encode(text).ids
    assert ours.encode(text) == ids
    assert ours.decode(ids) == library.decode(ids)


def test_the_start_token_comes_from_the_post_processor(pair: tuple[Tokenizer, Any]) -> None:
    ours, _ = pair
    assert ours.encode("ab")[0] == ours.bos_id == 1
    assert 1 not in ours.encode("ab", add_special=False)
    assert ours.eos_ids == {2, PIECES.index("<end_of_turn>")}
    assert ours.longest_token_bytes == len("<end_of_turn>")


def test_unknown_decoders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(_file({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}))
    )
    with pytest.raises(ModelFileError, match="WordPiece"):
        load_tokenizer(tmp_path)
