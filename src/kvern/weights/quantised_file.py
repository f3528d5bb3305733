"""kvern's own model file: one safetensors file that says all there is to know about a quantised model.

Any safetensors reader can list it. Its ``__metadata__`` holds one key, ``kvern``: a JSON object with ``version``,
``spec`` (the model's shapes and constants), ``matrices`` (format, rows and columns of each; the stored tensor is
uint8 [rows, bytes per row], with ``NAME.header`` beside it where the format has one), ``documents`` (files kept
inside as uint8 tensors ``documents/NAME``: tokenizer, chat template) and ``about`` (where it came from, how it was
made, what was measured). Every other tensor is a float32 vector. See docs/quantisation.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from kvern.core.errors import ConfigError, ModelFileError
from kvern.formats import activations
from kvern.formats import weights as weight_formats
from kvern.weights.mapped_file import TensorInfo
from kvern.weights.safetensors import SafetensorsFile

VERSION = 1
KEY = "kvern"
HEADER_SUFFIX = ".header"
DOCUMENT_PREFIX = "documents/"
MAX_HEADER_BYTES = 1 << 28  # of one matrix's header tensor
MAX_DOCUMENT_BYTES = 256 << 20
MAX_SIDE = 1 << 31
MAX_DOCUMENTS = 16


class MatrixEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One matrix. ``activation`` names the form of its inputs where that is not the format's own."""

    format: str
    rows: int
    columns: int
    activation: str | None = None


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file says of itself. ``spec`` is left to ``kvern.models.canonical``."""

    version: int
    spec: dict[str, Any]
    matrices: dict[str, MatrixEntry]
    documents: list[str] = []
    about: dict[str, Any] = {}


class _Versioned(msgspec.Struct):
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class StoredMatrix:
    """A matrix as it lies in the file: ``raw`` uint8 [rows, bytes per row], a view; ``header`` uint8."""

    entry: MatrixEntry
    raw: NDArray[np.uint8]
    header: NDArray[np.uint8]


class QuantisedFile(SafetensorsFile):
    """An open file, checked: every matrix has the bytes that its format wants, every tensor is accounted for."""

    def __init__(self, file: SafetensorsFile) -> None:
        """Take over the maps of ``file``. Raises ModelFileError."""
        super().__init__(file.maps, file.metadata, file.tensors.values())
        self.description = _description(self)
        known = set(self.description.documents)
        if len(known) != len(self.description.documents) or len(known) > MAX_DOCUMENTS:
            raise self._wrong(f"lists {len(self.description.documents)} documents, some twice or too many")
        for name in known:
            self._bytes_tensor(DOCUMENT_PREFIX + name, MAX_DOCUMENT_BYTES)
        for name in self.description.matrices:
            self.matrix(name)
        self._refuse_unknown()

    def matrix(self, name: str) -> StoredMatrix:
        """Raises ModelFileError, naming the tensor, when it is absent or not what the description says."""
        entry = self.description.matrices.get(name)
        if entry is None:
            raise self._wrong(f"describes no matrix {name!r:.200}")
        if not (0 < entry.rows < MAX_SIDE and 0 < entry.columns < MAX_SIDE):
            raise self._wrong(f"matrix {name!r:.200} claims {entry.rows} x {entry.columns}: out of range")
        form = weight_formats.get(entry.format)
        header = np.empty(0, np.uint8)
        if name + HEADER_SUFFIX in self.tensors:
            self._bytes_tensor(name + HEADER_SUFFIX, MAX_HEADER_BYTES)
            header = self.data(name + HEADER_SUFFIX)
        self._check_activation(name, entry)
        info, expected = self.info(name), (entry.rows, form.row_bytes(entry.columns, header))
        if info.format != "U8" or info.shape != expected:
            raise self._wrong(
                f"matrix {name!r:.200} in {form.name} is {info.format} {info.shape}, but {entry.rows} rows of "
                f"{entry.columns} take U8 {expected}"
            )
        return StoredMatrix(entry, self.data(name).reshape(expected), header)

    def vector(self, name: str, size: int) -> NDArray[np.float32]:
        """A float32 vector, owned. Raises ModelFileError when it is absent, has another size or is not finite."""
        info = self.info(name)
        if info.format != "F32" or info.shape != (size,):
            raise self._wrong(f"vector {name!r:.200} is {info.format} {info.shape}, not F32 ({size},)")
        values = self.data(name).view("<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise self._wrong(f"vector {name!r:.200} holds a value that is not finite")
        return values

    def document(self, name: str) -> bytes | None:
        """A file kept inside, None when there is none of that name."""
        return self.data(DOCUMENT_PREFIX + name).tobytes() if name in self.description.documents else None

    def documents(self) -> dict[str, bytes]:
        """All files kept inside."""
        return {name: self.data(DOCUMENT_PREFIX + name).tobytes() for name in self.description.documents}

    def _check_activation(self, name: str, entry: MatrixEntry) -> None:
        allowed = weight_formats.get(entry.format).activations
        if entry.activation is None or entry.activation in allowed:
            return
        try:
            activations.get(entry.activation)
        except ConfigError as error:
            raise self._wrong(f"matrix {name!r:.200}: {error}") from None
        raise self._wrong(
            f"matrix {name!r:.200} in {entry.format} wants inputs as {entry.activation!r}; it can take "
            f"{', '.join(allowed)}"
        )

    def _bytes_tensor(self, name: str, limit: int) -> TensorInfo:
        info = self.info(name)
        if info.format != "U8" or len(info.shape) != 1 or info.nbytes > limit:
            raise self._wrong(f"tensor {name!r:.200} is {info.format} {info.shape}, not at most {limit} bytes of U8")
        return info

    def _refuse_unknown(self) -> None:
        """Every tensor is a matrix, its header, a document, or a vector of floats."""
        matrices = self.description.matrices
        for name, info in self.tensors.items():
            of_matrix = name in matrices or name.removesuffix(HEADER_SUFFIX) in matrices
            of_document = name.removeprefix(DOCUMENT_PREFIX) in self.description.documents
            if not of_matrix and not of_document and not (info.format == "F32" and len(info.shape) == 1):
                raise self._wrong(f"holds {name!r:.200} ({info.format} {info.shape}), which it does not describe")

    def _wrong(self, reason: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: {reason}")


def _description(file: SafetensorsFile) -> Description:
    """The checked ``kvern`` object; raises ModelFileError, also for versions not known here."""
    text = file.metadata.get(KEY)
    if not isinstance(text, str):
        raise ModelFileError(f"{file.path}: its metadata has no {KEY!r} object")
    try:
        version = msgspec.json.decode(text, type=_Versioned).version
        if version != VERSION:
            raise ModelFileError(
                f"{file.path}: is of version {version} of kvern's file format; this kvern reads version {VERSION}"
            )
        return msgspec.json.decode(text, type=Description)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelFileError(f"{file.path}: its {KEY!r} object cannot be read ({error})") from None


def recognise(file: SafetensorsFile) -> SafetensorsFile | QuantisedFile:
    """The same file as a `QuantisedFile` when it says that it is one. Raises ModelFileError (and closes it)."""
    if KEY not in file.metadata:
        return file
    try:
        return QuantisedFile(file)
    except ModelFileError:
        file.close()
        raise
