"""Reading a bundle: everything is checked before anything of it is used."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from outrider.runtime.bundle.archive import Entry, read_index
from outrider.runtime.bundle.checks import MAX_MANIFEST_BYTES, decode_manifest, manifest_files
from outrider.runtime.bundle.manifest import FileEntry, Manifest
from outrider.runtime.errors import (
    BadBundleError,
    BundleTooLargeError,
    DigestMismatchError,
    ExtraFileError,
    MissingFileError,
    NotFoundError,
    StorageError,
)

MANIFEST = "manifest.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest, layout and digests held when it was opened.

    `sha256` and `size` (bytes) are those of the `.orb` file. It keeps no file open, so `read` checks the digest again.
    """

    path: Path
    manifest: Manifest
    sha256: str
    size: int
    _index: Mapping[str, tuple[Entry, str]] = field(repr=False)

    def files(self) -> tuple[str, ...]:
        """The paths of all files but the manifest, sorted."""
        return tuple(sorted(self._index))

    def read(self, path: str) -> bytes:
        """The bytes of one file. Raises NotFoundError for a path that the bundle lacks, DigestMismatchError."""
        if path not in self._index:
            raise NotFoundError(f"{self.path} holds no {path!r}")
        entry, digest = self._index[path]
        try:
            with self.path.open("rb") as file:
                data = _read_at(file, entry)
        except OSError as e:
            raise StorageError(f"cannot read {self.path}: {e.strerror}") from e
        if hashlib.sha256(data).hexdigest() != digest:
            raise DigestMismatchError(f"{self.path} changed after it was opened: {path!r} differs")
        return data


def open_bundle(path: Path | str) -> Bundle:
    """Open a bundle and check all of it: container, limits, paths, manifest, sizes and digests.

    Raises the BadBundleError that names what is wrong; NotFoundError where there is no file.
    """
    location = Path(path)
    try:
        with location.open("rb") as file:
            return _open(location, file)
    except (FileNotFoundError, IsADirectoryError) as e:
        raise NotFoundError(f"there is no bundle at {location}") from e
    except OSError as e:
        raise StorageError(f"cannot read {location}: {e.strerror}") from e


def read_manifest(path: Path | str) -> Manifest:
    """The manifest alone, of a bundle that was opened before: no digest is checked, so nothing may rest on it.

    Raises BadBundleError; NotFoundError where there is no file.
    """
    location = Path(path)
    try:
        with location.open("rb") as file:
            entries = {entry.path: entry for entry in read_index(file, file.seek(0, 2))}
            return decode_manifest(_read_manifest(file, entries))
    except (FileNotFoundError, IsADirectoryError) as e:
        raise NotFoundError(f"there is no bundle at {location}") from e
    except OSError as e:
        raise StorageError(f"cannot read {location}: {e.strerror}") from e


def _open(location: Path, file: BinaryIO) -> Bundle:
    size = file.seek(0, 2)
    entries = {entry.path: entry for entry in read_index(file, size)}
    raw = _read_manifest(file, entries)
    manifest = decode_manifest(raw)
    expected = manifest_files(manifest)
    _compare(entries, expected)
    sums, whole = _sum_entries(file, entries)
    # One pass gives all sums, so the file's digest, which a signature is of, vouches for this very manifest.
    if sums[MANIFEST].sha256 != hashlib.sha256(raw).hexdigest():
        raise BadBundleError("the bundle changed while it was read")
    for path, listed in expected.items():
        if sums[path].sha256 != listed.sha256:
            raise DigestMismatchError(f"{path!r} has the SHA-256 {sums[path].sha256[:16]}, not {listed.sha256[:16]}")
    for path, entry in entries.items():
        if sums[path].crc != entry.crc:
            raise DigestMismatchError(f"the zip checksum of {path!r} does not hold")
    index = {path: (entries[path], listed.sha256) for path, listed in expected.items()}
    return Bundle(path=location, manifest=manifest, sha256=whole, size=size, _index=index)


def _read_manifest(file: BinaryIO, entries: Mapping[str, Entry]) -> bytes:
    entry = entries.get(MANIFEST)
    if entry is None:
        raise MissingFileError(f"the bundle holds no {MANIFEST}")
    if next(iter(entries)) != MANIFEST:
        raise BadBundleError(f"{MANIFEST} is not the first entry")
    if entry.size > MAX_MANIFEST_BYTES:
        raise BundleTooLargeError(f"the manifest has {entry.size} bytes, over the limit of {MAX_MANIFEST_BYTES}")
    return _read_at(file, entry)


def _compare(entries: Mapping[str, Entry], expected: Mapping[str, FileEntry]) -> None:
    """The archive must hold exactly the files of the manifest, in sorted order, at the sizes it says."""
    present = [path for path in entries if path != MANIFEST]
    for path in sorted(expected):
        if path not in entries:
            raise MissingFileError(f"the bundle lacks {path!r}, which its manifest names")
    for path in present:
        if path not in expected:
            raise ExtraFileError(f"the bundle holds {path!r}, which its manifest does not name")
    for path, listed in expected.items():
        if entries[path].size != listed.size:
            raise DigestMismatchError(f"{path!r} has {entries[path].size} bytes, not {listed.size}")
    if present != sorted(present):
        raise BadBundleError("the bundle's files are not in order")


@dataclass(frozen=True)
class _Sums:
    sha256: str
    crc: int


def _sum_entries(file: BinaryIO, entries: Mapping[str, Entry]) -> tuple[dict[str, _Sums], str]:
    """The sums of each entry's bytes, and the SHA-256 of the whole file, in one pass that reads it in pieces.

    The entries lie one after the other. The CRC-32 is what zip tools rely on, so it must hold too.
    """
    sums, whole, position = {}, hashlib.sha256(), 0
    file.seek(0)
    for path, entry in entries.items():
        whole.update(file.read(entry.offset - position))
        digest, crc, left = hashlib.sha256(), 0, entry.size
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise BadBundleError("the bundle changed while it was read")
            whole.update(chunk)
            digest.update(chunk)
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
        sums[path] = _Sums(digest.hexdigest(), crc)
        position = entry.offset + entry.size
    while chunk := file.read(_CHUNK):
        whole.update(chunk)
    return sums, whole.hexdigest()


def _read_at(file: BinaryIO, entry: Entry) -> bytes:
    file.seek(entry.offset)
    data = file.read(entry.size)
    if len(data) != entry.size:
        raise BadBundleError("the bundle changed while it was read")
    return data
