"""Text to token ids and back, from `tokenizer.json` (Hugging Face layout) or from GGUF metadata.

``load_tokenizer(path)`` reads a model folder or a `tokenizer.json`; ``tokenizer_gguf.tokenizer_from_gguf`` reads a
GGUF header. Nothing in a file is executed, and every id a file names is checked before it is used.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from kvern.core.errors import InvalidRequest, ModelFileError
from kvern.weights.token_table import TokenTable

MAX_TOKENIZER_FILE_BYTES = 256 << 20
# Files of a model folder that say how its text side works.
TOKENIZER_DOCUMENTS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")

# Tokens that end a turn or a text in the instruction formats of the supported families.
END_OF_GENERATION = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
)


class TextEncoder(Protocol):
    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Ids of ``text`` alone, nothing put before or after it."""


class TextEnds(msgspec.Struct, frozen=True, kw_only=True):
    """Ids at the ends of texts. ``prefix`` and ``suffix`` are put around a text when special tokens are asked for."""

    bos_id: int | None
    eos_id: int | None
    stops: frozenset[int] = frozenset()  # further ids that end a generation
    prefix: Sequence[int] = ()
    suffix: Sequence[int] = ()


class Tokenizer:
    """One model's tokenizer. Threads may share it.

    ``eos_ids`` are all ids that end a generation: the model's end token ``eos_id``, and ends of turns.
    ``drops_first_space``: decoding leaves out the space that encoding put before the text.
    """

    def __init__(
        self, encoder: TextEncoder, table: TokenTable, ends: TextEnds, *, drops_first_space: bool = False
    ) -> None:
        self._encoder = encoder
        self._table = table
        self._prefix = list(ends.prefix)
        self._suffix = list(ends.suffix)
        self.drops_first_space = drops_first_space
        self.bos_id = ends.bos_id
        self.eos_id = ends.eos_id
        self.eos_ids = ends.stops | ({ends.eos_id} if ends.eos_id is not None else set())

    @property
    def vocab_size(self) -> int:
        """Number of ids the vocabulary has; a model's output head may be padded beyond it."""
        return len(self._table)

    @functools.cached_property
    def longest_token_bytes(self) -> int:
        """Bytes of the longest token: a text of more than that times n bytes has more than n tokens."""
        return max((len(self._table.bytes_of(token)) for token in range(len(self._table))), default=1)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of ``text``.

        ``add_special`` puts the model's start (and end) tokens around it; ``parse_special`` recognises control
        tokens spelled out in it. Raises InvalidRequest for text that is not Unicode (lone surrogates).
        """
        check_unicode(text)
        ids = self._encoder.encode(text, parse_special)
        return self._prefix + ids + self._suffix if add_special else ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
        special = self._table.special
        pieces = [self._table.bytes_of(token) for token in ids if not (skip_special and token in special)]
        text = b"".join(pieces).decode("utf-8", "replace")
        return text[1:] if self.drops_first_space and text.startswith(" ") else text

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token adds to the text (control tokens: their spelling); empty beyond the vocabulary."""
        return self._table.bytes_of(token)

    def token_text(self, token: int) -> str:
        """The token's spelling in the vocabulary; empty beyond it."""
        return self._table.text_of(token)

    def is_special(self, token: int) -> bool:
        return token in self._table.special


def check_unicode(text: str) -> None:
    """Raise InvalidRequest, with the place, when ``text`` holds a lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"the text is not valid Unicode: lone surrogate at character {error.start}",
            code="invalid_unicode",
        ) from error


class LibraryEncoder:
    """A tokenizer of the `tokenizers` library; a second copy, made when first needed, ignores control tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._aware = tokenizer
        self._blind: Any = None

    def encode(self, text: str, parse_special: bool) -> list[int]:
        tokenizer = self._aware if parse_special else self._blind or self._make_blind()
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _make_blind(self) -> Any:
        blind = type(self._aware).from_str(self._aware.to_str())
        blind.encode_special_tokens = True
        self._blind = blind
        return blind


def load_tokenizer(path: Path) -> Tokenizer:
    """Read ``path``: a model folder with a `tokenizer.json`, or that file. Raises ModelFileError."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ModelFileError(f"no tokenizer.json in {path}; kvern reads no other Hugging Face tokenizer file")
    if file.stat().st_size > MAX_TOKENIZER_FILE_BYTES:
        raise ModelFileError(f"{file} is over {MAX_TOKENIZER_FILE_BYTES >> 20} MiB")
    documents = {name: file.parent / name for name in TOKENIZER_DOCUMENTS if (file.parent / name).is_file()}
    beside = {name: path.read_bytes() for name, path in documents.items()}
    return tokenizer_from_documents({**beside, "tokenizer.json": file.read_bytes()}, str(file.parent))


def tokenizer_from_documents(documents: Mapping[str, bytes], where: str) -> Tokenizer:
    """From the bytes of ``tokenizer.json`` and, where there are any, of the files beside it (TOKENIZER_DOCUMENTS).

    ``where`` is what errors begin with. Raises ModelFileError.
    """
    data = documents.get("tokenizer.json")
    if data is None:
        raise ModelFileError(f"{where}: has no tokenizer.json")
    return _from_json(data, documents, where)


class _AddedToken(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class _TokenizerFile(msgspec.Struct):
    """The parts of a tokenizer.json that the library does not report back."""

    decoder: dict[str, Any] | None = None
    added_tokens: list[_AddedToken] = []


def _from_json(data: bytes, documents: Mapping[str, bytes], where: str) -> Tokenizer:
    import tokenizers

    name = f"{where}/tokenizer.json"
    try:
        described = msgspec.json.decode(data, type=_TokenizerFile)
        library = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises bare Exception
        raise ModelFileError(f"{name} is not a tokenizer: {error}") from error
    library.no_truncation()
    library.no_padding()
    size = library.get_vocab_size(with_added_tokens=True)
    highest = max((token.id for token in described.added_tokens), default=-1)
    if highest >= size + 1_000_000:
        raise ModelFileError(f"{name}: added token id {highest} is far beyond its {size} tokens")
    texts = [library.id_to_token(token) for token in range(max(size, highest + 1))]
    special = frozenset(token.id for token in described.added_tokens if token.special)
    literal = frozenset(token.id for token in described.added_tokens)
    style, drops_first_space = _spelling(described.decoder, name)
    prefix, suffix = _surroundings(library)
    config = _object(documents, "tokenizer_config.json", where)
    return Tokenizer(
        LibraryEncoder(library),
        TokenTable(texts, style, special, literal),
        TextEnds(
            bos_id=_named_token(library, config.get("bos_token")),
            eos_id=_named_token(library, config.get("eos_token")),
            stops=_stops(library, _object(documents, "generation_config.json", where), special),
            prefix=prefix,
            suffix=suffix,
        ),
        drops_first_space=drops_first_space,
    )


def _spelling(decoder: dict[str, Any] | None, name: str) -> tuple[Any, bool]:
    """How the vocabulary spells bytes, and whether decoding drops one leading space."""
    steps = (decoder or {}).get("decoders") or [decoder or {}]
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" in kinds:
        return "byte_level", False
    if "Metaspace" in kinds:
        [metaspace] = [step for step in steps if step.get("type") == "Metaspace"]
        return "sentencepiece", metaspace.get("prepend_scheme", "always") != "never"
    if "Replace" in kinds or "ByteFallback" in kinds:
        strips = any(step.get("type") == "Strip" and step.get("start", 0) > 0 for step in steps)
        return "sentencepiece", strips
    raise ModelFileError(
        f"{name}: unsupported decoder {kinds}; byte-level and SentencePiece-style ones are supported"
    )


def _surroundings(library: Any) -> tuple[list[int], list[int]]:
    """What the post-processor puts before and after a text, found by trying it."""
    plain = library.encode("a", add_special_tokens=False).ids
    full = library.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    return [], []


def _stops(library: Any, generation: dict[str, Any], special: frozenset[int]) -> frozenset[int]:
    listed = generation.get("eos_token_id")
    ends = {token for token in (listed if isinstance(listed, list) else [listed]) if isinstance(token, int)}
    for text in END_OF_GENERATION:
        token = library.token_to_id(text)
        if token is not None and token in special:
            ends.add(token)
    return frozenset(ends)


def _named_token(library: Any, named: object) -> int | None:
    """Id of a token named in tokenizer_config.json: a string, or an object with ``content``."""
    text = named.get("content") if isinstance(named, dict) else named
    return library.token_to_id(text) if isinstance(text, str) else None


def _object(documents: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    """The JSON object in one of the documents; empty when it is not there or something else."""
    if name not in documents:
        return {}
    try:
        value = json.loads(documents[name])
    except ValueError as error:
        raise ModelFileError(f"{where}/{name} is not JSON: {error}") from error
    return value if isinstance(value, dict) else {}
