"""Model repositories of the Hugging Face hub (or a mirror with the same HTTP interface), fetched file by file.

Only data is fetched: safetensors, GGUF, JSON, tokenizer and template files from the top of the repository; never
code, never pickles. The revision is turned into a commit first, every file is taken from that commit, and sizes and
hashes are those the hub lists for it.

Environment (names of huggingface_hub): HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kvern.core.errors import ModelFileError
from kvern.weights.https_download import Client
from kvern.weights.progress import Part, Progress

PUBLIC_ENDPOINT = "https://huggingface.co"
MAX_LISTING_BYTES = 32 << 20
MAX_FILES = 4096
_SUFFIXES = (".safetensors", ".json", ".jinja", ".gguf")
_NAMES = ("tokenizer.model", "merges.txt")
_SOURCE = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w.-]+\.gguf))?(?:@(?P<revision>[\w.-][\w./-]*))?", re.ASCII
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True, slots=True)
class Source:
    """``hf:ORG/NAME[/FILE.gguf][@REVISION]``: a branch, tag or commit of a repository, ``main`` by default."""

    repo: str
    file: str | None
    revision: str

    @classmethod
    def parse(cls, text: str) -> Source:
        match = _SOURCE.fullmatch(text)
        if match is None or ".." in text:
            raise ModelFileError(f"{text!r:.200} is not hf:ORG/NAME, hf:ORG/NAME/FILE.gguf or either with @REVISION")
        return cls(match["repo"], match["file"], match["revision"] or "main")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a commit. ``sha256`` is known for large files, ``git_id`` (SHA-1 of a git blob) for small ones."""

    name: str
    size: int
    sha256: str | None
    git_id: str | None


def is_offline() -> bool:
    """HF_HUB_OFFLINE is set."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in {"1", "true", "yes", "on"}


def folder_of(source: Source, cache: Path) -> Path | None:
    """Where an earlier ``fetch`` of this source put its files, or None."""
    home = _home(source, cache)
    commit = source.revision
    if not _COMMIT.fullmatch(commit):
        reference = home / "refs" / quote(source.revision, safe="")
        if not reference.is_file():
            return None
        commit = reference.read_text().strip()
        if not _COMMIT.fullmatch(commit):
            return None
    folder = home / _folder_name(commit, source)
    return folder if folder.is_dir() else None


def fetch(source: Source, cache: Path, progress: Progress) -> Path:
    """Bring the source's files into the cache and return their folder; interrupted downloads are taken up again.

    Raises ModelFileError when the hub refuses, cannot be reached, or sends other bytes than it lists.
    """
    if is_offline():
        found = folder_of(source, cache)
        if found is None:
            raise ModelFileError(f"hf:{source.repo} is not in the cache, and HF_HUB_OFFLINE is set")
        return found
    endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or PUBLIC_ENDPOINT
    client = Client(endpoint, os.environ.get("HF_TOKEN", "").strip() or None)
    revision = quote(source.revision, safe="")
    raw = client.read(f"{endpoint}/api/models/{source.repo}/revision/{revision}?blobs=true", MAX_LISTING_BYTES)
    commit, listed = _listing(source, raw)
    home = _home(source, cache)
    folder = home / _folder_name(commit, source)
    if not folder.is_dir():
        _fetch_files(client, f"{endpoint}/{source.repo}/resolve/{commit}", _wanted(source, listed), folder, progress)
    reference = home / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    temporary = reference.with_name(f"{reference.name}.{os.getpid()}")
    temporary.write_text(commit)
    os.replace(temporary, reference)
    return folder


def _home(source: Source, cache: Path) -> Path:
    return cache / "hf" / source.repo.replace("/", "--")


def _folder_name(commit: str, source: Source) -> str:
    return commit if source.file is None else f"{commit}-{source.file}"


def _listing(source: Source, raw: bytes) -> tuple[str, list[RemoteFile]]:
    """The commit and the files of the hub's answer."""
    try:
        answer = json.loads(raw)
        commit, siblings = answer["sha"], answer["siblings"]
        files = [_remote_file(entry) for entry in siblings[: MAX_FILES + 1]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFileError(f"hf:{source.repo}: the hub's list of files cannot be read ({error!r:.200})") from None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise ModelFileError(f"hf:{source.repo}: the hub names no commit for {source.revision!r}")
    if _COMMIT.fullmatch(source.revision) and commit != source.revision:
        raise ModelFileError(f"hf:{source.repo}: asked for commit {source.revision}, the hub answered {commit}")
    if len(files) > MAX_FILES:
        raise ModelFileError(f"hf:{source.repo}: has more than {MAX_FILES} files")
    return commit, files


def _remote_file(entry: Mapping[str, Any]) -> RemoteFile:
    large = entry.get("lfs") or {}
    size = large.get("size", entry.get("size"))
    if not isinstance(entry["rfilename"], str) or type(size) is not int or size < 0:
        raise ValueError("a file without a name or a size")
    return RemoteFile(entry["rfilename"], size, large.get("sha256"), None if large else entry.get("blobId"))


def _wanted(source: Source, listed: list[RemoteFile]) -> list[RemoteFile]:
    """The data files at the top of the repository; of GGUF models exactly one, and none beside safetensors."""
    top = [f for f in listed if re.fullmatch(r"[A-Za-z0-9_][\w.+-]{0,200}", f.name, re.ASCII)]
    data = [f for f in top if f.name.endswith(_SUFFIXES) or f.name in _NAMES]
    data = [f for f in data if not f.name.startswith("consolidated")]  # the same weights once more
    if source.file is not None:
        return _named(source, data)
    plain = [f for f in data if not f.name.endswith(".gguf")]
    if any(f.name.endswith(".safetensors") for f in plain):
        return plain
    models = sorted({_PART.sub("", f.name) for f in data if f.name.endswith(".gguf")})
    if len(models) == 1:
        return data
    if models:
        raise ModelFileError(
            f"hf:{source.repo} has several GGUF files: choose one, such as hf:{source.repo}/{models[0]}"
            f" (there are {', '.join(models)[:1000]})"
        )
    raise ModelFileError(f"hf:{source.repo} has neither safetensors nor GGUF files at its top level")


def _named(source: Source, data: list[RemoteFile]) -> list[RemoteFile]:
    """The GGUF file asked for, with all its parts, and whatever small files stand beside it."""
    stem = _PART.sub("", source.file or "")
    chosen = [f for f in data if f.name == source.file or (_PART.search(f.name) and _PART.sub("", f.name) == stem)]
    if not chosen:
        raise ModelFileError(f"hf:{source.repo} has no file {source.file} at its top level")
    return chosen + [f for f in data if not f.name.endswith((".gguf", ".safetensors"))]


def _fetch_files(client: Client, base: str, files: list[RemoteFile], folder: Path, progress: Progress) -> None:
    """Fill a folder beside the final one, then rename it: a folder with the final name is always complete."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    unfinished.mkdir(parents=True, exist_ok=True)
    total, done = sum(file.size for file in files), 0
    for file in files:
        target = unfinished / file.name
        if not (target.is_file() and target.stat().st_size == file.size):
            part = unfinished / (file.name + ".part")
            report = Part(progress, done, total)
            client.download(f"{base}/{quote(file.name)}", part, file.size, report)
            _check_hash(part, file)
            os.replace(part, target)
        done += file.size
        progress(done, total)
    os.replace(unfinished, folder)


def _check_hash(part: Path, file: RemoteFile) -> None:
    """A wrong file is removed, so that the next attempt begins anew."""
    expected = file.sha256 or file.git_id
    if expected is None:
        return
    # Small files are named by git: SHA-1 over a header and the content. It serves as a checksum here.
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with part.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        part.unlink()
        raise ModelFileError(f"{file.name}: arrived with the hash {digest.hexdigest()}, the hub lists {expected}")
