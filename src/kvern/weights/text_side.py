"""Tokenizer and chat template of an open model file, whatever kind it is, and the documents that carry them on.

A quantised file keeps them inside: the tokenizer keys of the GGUF header it was made from as one JSON object, or the
files of the Hugging Face folder as they were.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from kvern.core.errors import ModelFileError
from kvern.weights.chat_template import (
    TEMPLATE_DOCUMENTS,
    ChatTemplate,
    chat_template_from_documents,
    chat_template_from_folder,
    chat_template_from_gguf,
)
from kvern.weights.gguf import GgufFile
from kvern.weights.mapped_file import TensorFile
from kvern.weights.quantised_file import MAX_DOCUMENT_BYTES, QuantisedFile
from kvern.weights.safetensors import SafetensorsFile
from kvern.weights.tokenizer import TOKENIZER_DOCUMENTS, Tokenizer, load_tokenizer, tokenizer_from_documents
from kvern.weights.tokenizer_gguf import tokenizer_from_gguf

GGUF_DOCUMENT = "tokenizer_keys.json"
_GGUF_PREFIX = "tokenizer."


@dataclass(frozen=True, slots=True)
class TextSource:
    """How one kind of file gives its text side. All raise ModelFileError."""

    tokenizer: Callable[[TensorFile], Tokenizer]
    template: Callable[[TensorFile, Tokenizer], ChatTemplate | None]
    documents: Callable[[TensorFile], dict[str, bytes]]


def source_of(file: TensorFile) -> TextSource:
    return SOURCES[type(file)]


def _gguf_keys(file: TensorFile) -> dict[str, Any]:
    """The tokenizer keys of a GGUF header, or of a quantised file that was made from one."""
    if not isinstance(file, QuantisedFile):
        return file.metadata
    try:
        found = msgspec.json.decode(file.document(GGUF_DOCUMENT) or b"{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelFileError(f"{file.path}: its {GGUF_DOCUMENT} cannot be read ({error})") from None
    return found


def _gguf_documents(file: TensorFile) -> dict[str, bytes]:
    keys = {name: value for name, value in file.metadata.items() if name.startswith(_GGUF_PREFIX)}
    return {GGUF_DOCUMENT: json.dumps(keys, ensure_ascii=False, allow_nan=False).encode()}


def _folder_documents(file: TensorFile) -> dict[str, bytes]:
    folder = file.path.parent
    found: dict[str, bytes] = {}
    for name in dict.fromkeys((*TOKENIZER_DOCUMENTS, *TEMPLATE_DOCUMENTS)):
        document = folder / name
        if document.is_file():
            _check_size(document)
            found[name] = document.read_bytes()
    return found


def _check_size(document: Path) -> None:
    if document.stat().st_size > MAX_DOCUMENT_BYTES:
        raise ModelFileError(f"{document}: is over {MAX_DOCUMENT_BYTES >> 20} MiB")


def _made_from_gguf(file: TensorFile) -> bool:
    return isinstance(file, QuantisedFile) and GGUF_DOCUMENT in file.description.documents


def _documents(file: TensorFile) -> dict[str, bytes]:
    assert isinstance(file, QuantisedFile)
    return file.documents()


def _quantised_tokenizer(file: TensorFile) -> Tokenizer:
    if _made_from_gguf(file):
        return tokenizer_from_gguf(_gguf_keys(file))
    return tokenizer_from_documents(_documents(file), str(file.path))


def _quantised_template(file: TensorFile, tokenizer: Tokenizer) -> ChatTemplate | None:
    if _made_from_gguf(file):
        return chat_template_from_gguf(_gguf_keys(file), tokenizer)
    return chat_template_from_documents(_documents(file), tokenizer, str(file.path))


SOURCES: dict[type[TensorFile], TextSource] = {
    GgufFile: TextSource(
        tokenizer=lambda file: tokenizer_from_gguf(file.metadata),
        template=lambda file, tokenizer: chat_template_from_gguf(file.metadata, tokenizer),
        documents=_gguf_documents,
    ),
    SafetensorsFile: TextSource(
        tokenizer=lambda file: load_tokenizer(file.path.parent),
        template=lambda file, tokenizer: chat_template_from_folder(file.path.parent, tokenizer),
        documents=_folder_documents,
    ),
    QuantisedFile: TextSource(_quantised_tokenizer, _quantised_template, _documents),
}
