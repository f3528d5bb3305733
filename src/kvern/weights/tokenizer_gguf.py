"""A tokenizer from the `tokenizer.ggml.*` metadata of a GGUF file.

Two kinds: "gpt2" (byte-level BPE; the split expression is chosen by `tokenizer.ggml.pre`) and "llama"
(SentencePiece BPE with scores). Key names and token types: the GGUF specification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from kvern.core.errors import ModelFileError
from kvern.weights.sentencepiece_bpe import SPACE_MARK, PieceSet, SentencePieceBpe
from kvern.weights.token_table import TokenTable
from kvern.weights.tokenizer import END_OF_GENERATION, LibraryEncoder, TextEnds, Tokenizer

_PREFIX = "tokenizer.ggml."
_MAX_TOKENS = 2_000_000

# How each family cuts text before merging. The expressions are those of the families' own tokenizer.json.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_ALIASES = {
    "default": "gpt-2",
    "gpt2": "gpt-2",
    "gpt-2": "gpt-2",
    "smollm": "smollm",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "llama-bpe": "llama-bpe",
    "qwen2": "qwen2",
}


class TokenKind(IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class _Metadata:
    """Checked access to the header: every error names the key."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.texts: list[str] = self.sequence("tokens", str)
        if not 0 < len(self.texts) <= _MAX_TOKENS:
            raise ModelFileError(f"{_PREFIX}tokens: {len(self.texts)} tokens (1 to {_MAX_TOKENS} are supported)")
        kinds = self.sequence("token_type", int, size=len(self.texts))
        self.kinds: list[int] = kinds or [TokenKind.NORMAL] * len(self.texts)

    def sequence(self, key: str, kind: type, size: int | None = None) -> list[Any]:
        """A list of ``kind``; empty when the key is absent."""
        value = self._values.get(_PREFIX + key)
        if value is None:
            return []
        items = value.tolist() if isinstance(value, np.ndarray) else value
        allowed = (int, float) if kind is float else kind
        if (
            not isinstance(items, Sequence)
            or isinstance(items, str)
            or not all(isinstance(i, allowed) for i in items)
        ):
            raise ModelFileError(f"{_PREFIX}{key} is not a list of {kind.__name__}")
        if size is not None and len(items) != size:
            raise ModelFileError(f"{_PREFIX}{key} has {len(items)} entries, expected {size}")
        return list(items)

    def text(self, key: str, default: str = "") -> str:
        value = self._values.get(_PREFIX + key, default)
        if not isinstance(value, str):
            raise ModelFileError(f"{_PREFIX}{key} is not a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._values.get(_PREFIX + key, default))

    def token(self, key: str) -> int | None:
        """A token id, checked against the vocabulary; None when absent."""
        value = self._values.get(_PREFIX + key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise ModelFileError(f"{_PREFIX}{key} is {str(value)[:40]!r}, not a token id")
        token = value
        if not 0 <= token < len(self.texts):
            raise ModelFileError(f"{_PREFIX}{key} = {token} is not an id of {len(self.texts)} tokens")
        return token

    def of_kind(self, *kinds: TokenKind) -> dict[str, int]:
        """Spelling -> id of the tokens of these kinds; the first id wins when a spelling repeats."""
        wanted = frozenset(int(kind) for kind in kinds)
        found: dict[str, int] = {}
        for token, (text, kind) in enumerate(zip(self.texts, self.kinds, strict=True)):
            if kind in wanted and text:
                found.setdefault(text, token)
        return found


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer described by a GGUF header. Raises ModelFileError naming the key at fault."""
    header = _Metadata(metadata)
    kind = header.text("model")
    if kind == "gpt2":
        return _byte_level(header)
    if kind == "llama":
        return _sentencepiece(header)
    raise ModelFileError(f"{_PREFIX}model is {kind!r}; supported: 'gpt2' (byte-level BPE), 'llama' (SentencePiece)")


def _byte_level(header: _Metadata) -> Tokenizer:
    family = _ALIASES.get(header.text("pre", "default"))
    if family is None:
        raise ModelFileError(
            f"{_PREFIX}pre is {header.text('pre')!r}, an unknown way to split text; known: {', '.join(_ALIASES)}"
        )
    control = header.of_kind(TokenKind.CONTROL, TokenKind.UNKNOWN)
    user_defined = header.of_kind(TokenKind.USER_DEFINED)
    library = _library_bpe(header, family)
    from tokenizers import AddedToken

    library.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in control])
    library.add_tokens([AddedToken(text, normalized=False, special=False) for text in user_defined])
    table = TokenTable(header.texts, "byte_level", frozenset(control.values()), frozenset(user_defined.values()))
    return _assemble(header, LibraryEncoder(library), table, adds_bos=family == "llama-bpe")


def _library_bpe(header: _Metadata, family: str) -> Any:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = {text: token for token, text in reversed(list(enumerate(header.texts)))}
    merges = [tuple(merge.split(" ", 1)) for merge in header.sequence("merges", str)]
    if not merges or any(len(merge) != 2 for merge in merges):
        raise ModelFileError(f"{_PREFIX}merges is missing or has an entry that is not two tokens")
    try:
        library = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=family == "llama-bpe"))
    except Exception as error:  # the library raises bare Exception
        raise ModelFileError(f"{_PREFIX}merges: {error}") from error
    byte_level = pre_tokenizers.ByteLevel
    if family == "gpt-2":
        library.pre_tokenizer = byte_level(add_prefix_space=header.flag("add_space_prefix", False))
    elif family == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        library.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level(add_prefix_space=False)])
    else:
        split = _QWEN2_SPLIT if family == "qwen2" else _LLAMA3_SPLIT
        pieces = pre_tokenizers.Split(Regex(split), behavior="isolated")
        whole = byte_level(add_prefix_space=False, use_regex=False)
        library.pre_tokenizer = pre_tokenizers.Sequence([pieces, whole])
    if family == "qwen2":
        library.normalizer = normalizers.NFC()
    return library


def _sentencepiece(header: _Metadata) -> Tokenizer:
    scores = header.sequence("scores", float, size=len(header.texts))
    if not scores:
        raise ModelFileError(f"{_PREFIX}scores is missing; a SentencePiece vocabulary needs them")
    control = header.of_kind(TokenKind.CONTROL)
    unused = header.of_kind(TokenKind.UNUSED)
    unknown = header.token("unknown_token_id")
    if unknown is None:
        unknown = next(iter(header.of_kind(TokenKind.UNKNOWN).values()), None)
    bytes_of = header.of_kind(TokenKind.BYTE)
    byte_ids = tuple(bytes_of.get(f"<0x{byte:02X}>", -1) for byte in range(256))
    if bytes_of and -1 in byte_ids:
        raise ModelFileError(f"{_PREFIX}tokens has byte tokens, but not <0x{byte_ids.index(-1):02X}>")
    if unknown is None and not bytes_of:
        raise ModelFileError(f"{_PREFIX}unknown_token_id is missing, and there are no byte tokens to fall back to")
    space_prefix = header.flag("add_space_prefix", True)
    pieces = PieceSet(
        mergeable=_marked(header.of_kind(TokenKind.NORMAL, TokenKind.USER_DEFINED, TokenKind.UNUSED)),
        scores=scores,
        user_defined=_marked(header.of_kind(TokenKind.USER_DEFINED)),
        control=control,
        unused=frozenset(unused.values()),
        bytes=byte_ids if bytes_of else (),
        unknown=-1 if unknown is None else unknown,
        space_prefix=space_prefix,
    )
    special = frozenset(control.values()) | frozenset(header.of_kind(TokenKind.UNKNOWN).values())
    table = TokenTable(header.texts, "sentencepiece", special)
    return _assemble(header, SentencePieceBpe(pieces), table, adds_bos=True, drops_first_space=space_prefix)


def _marked(pieces: Mapping[str, int]) -> dict[str, int]:
    """Converters write the space of user-defined pieces plainly; inside the encoder it is always the mark."""
    return {text.replace(" ", SPACE_MARK) if " " in text else text: token for text, token in pieces.items()}


def _assemble(
    header: _Metadata, encoder: Any, table: TokenTable, *, adds_bos: bool, drops_first_space: bool = False
) -> Tokenizer:
    bos, eos = header.token("bos_token_id"), header.token("eos_token_id")
    control = header.of_kind(TokenKind.CONTROL)
    named = [header.token("eot_token_id"), header.token("eom_token_id"), *map(control.get, END_OF_GENERATION)]
    adds_bos = header.flag("add_bos_token", adds_bos)
    adds_eos = header.flag("add_eos_token", False)
    ends = TextEnds(
        bos_id=bos,
        eos_id=eos,
        stops=frozenset(token for token in named if token is not None),
        prefix=[bos] if adds_bos and bos is not None else [],
        suffix=[eos] if adds_eos and eos is not None else [],
    )
    return Tokenizer(encoder, table, ends, drops_first_space=drops_first_space)
