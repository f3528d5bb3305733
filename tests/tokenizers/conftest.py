"""Reference tokenisers for the tests, and the corpus they are compared on."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

CORPUS = Path(__file__).parents[1] / "data" / "multilingual.txt"


@pytest.fixture(scope="session")
def corpus() -> str:
    """Many scripts, emoji, combining marks, code, whitespace runs, digits."""
    return CORPUS.read_text(encoding="utf-8")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def sentencepiece_model(
    pieces: Iterable[tuple[str, float, int]], unknown: int, byte_fallback: bool, space_prefix: bool
) -> bytes:
    """A serialised SentencePiece ModelProto of type BPE. Pieces are (spelling, score, type)."""
    proto = bytearray()
    count = 0
    for text, score, kind in pieces:
        body = _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _field(3, kind)
        proto += _field(1, body)
        count += 1
    trainer = _field(3, 2) + _field(4, count) + _field(35, int(byte_fallback)) + _field(40, unknown)
    trainer += _field(41, 1) + _field(42, 2)
    normaliser = _field(1, b"identity") + _field(3, int(space_prefix)) + _field(4, 0) + _field(5, 1)
    return bytes(proto) + _field(2, trainer) + _field(3, normaliser)


@pytest.fixture(scope="session")
def sentencepiece_reference() -> Any:
    """Build the SentencePiece library's own processor from GGUF metadata."""
    library = pytest.importorskip("sentencepiece", reason="the reference needs the sentencepiece package")

    def build(metadata: dict[str, Any]) -> Any:
        texts: Sequence[str] = metadata["tokenizer.ggml.tokens"]
        kinds: Sequence[int] = metadata["tokenizer.ggml.token_type"]
        unknown = metadata["tokenizer.ggml.unknown_token_id"]
        pieces = [
            (text.replace(" ", "\u2581") if kind == 4 else text, score, 2 if token == unknown else kind)
            for token, (text, score, kind) in enumerate(
                zip(texts, metadata["tokenizer.ggml.scores"], kinds, strict=True)
            )
        ]
        processor = library.SentencePieceProcessor()
        processor.LoadFromSerializedProto(
            sentencepiece_model(pieces, unknown, 6 in kinds, metadata.get("tokenizer.ggml.add_space_prefix", True))
        )
        return processor

    return build


def _real_metadata(name: str) -> dict[str, Any]:
    from kvern.weights import gguf, hub

    path = hub.cached(name)
    if path is None:
        pytest.skip(f"{name} is not in the model cache; `kvern pull {name}` fetches it")
    with contextlib.closing(gguf.read(path)) as file:
        return dict(file.metadata)


@pytest.fixture(scope="session")
def smollm2_metadata() -> dict[str, Any]:
    return _real_metadata("smollm2")


@pytest.fixture(scope="session")
def gemma_metadata() -> dict[str, Any]:
    return _real_metadata("gemma3-270m")


SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def _byte_level_metadata(library: Any, pre: str) -> dict[str, Any]:
    model = json.loads(library.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    texts = sorted(vocabulary, key=vocabulary.__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [3 if text in SPECIAL else 1 for text in texts],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": vocabulary[SPECIAL[0]],
        "tokenizer.ggml.eos_token_id": vocabulary[SPECIAL[1]],
    }


@pytest.fixture(scope="session")
def bpe_metadata() -> Any:
    """The GGUF metadata of a trained byte-level BPE of the `tokenizers` library."""
    return _byte_level_metadata


@pytest.fixture(scope="session")
def trained_bpe() -> Any:
    """Train a small byte-level BPE (600 tokens) on the corpus, with a given pre-tokenizer and normaliser."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    def train(pre_tokenizer: Any = None, normaliser: Any = None) -> Any:
        library = Tokenizer(models.BPE())
        library.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        if normaliser is not None:
            library.normalizer = normaliser
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=900, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
        )
        library.train_from_iterator([CORPUS.read_text(encoding="utf-8")], trainer)
        return library

    return train
