"""Writing a bundle: the same manifest and files give the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from outrider.runtime.bundle.archive import MAX_BUNDLE_BYTES, MAX_FILE_BYTES, MAX_FILES, pack
from outrider.runtime.bundle.checks import encode_manifest, manifest_files
from outrider.runtime.bundle.manifest import FileEntry, Manifest
from outrider.runtime.bundle.reader import MANIFEST
from outrider.runtime.durable import storage_errors, whole_file
from outrider.runtime.errors import (
    BundleTooLargeError,
    DigestMismatchError,
    ExtraFileError,
    MissingFileError,
)


def file_entry(path: str, data: bytes) -> FileEntry:
    """The manifest's record of a file."""
    return FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def write_bundle(path: Path | str, manifest: Manifest, files: Mapping[str, bytes]) -> str:
    """Write an `.orb`; returns the SHA-256 of the file.

    `files` must be exactly those that the manifest names, with the digests it names. The file appears whole or not
    at all. Raises BadBundleError where manifest and files disagree, StorageError where the disk fails.
    """
    location = Path(path)
    header = encode_manifest(manifest)
    _check_files(manifest, files)
    digest = hashlib.sha256()
    with storage_errors(f"write {location}"), whole_file(location) as file:
        for piece in pack({MANIFEST: header, **{name: files[name] for name in sorted(files)}}):
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _check_files(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    expected = manifest_files(manifest)
    for name, entry in expected.items():
        if name not in files:
            raise MissingFileError(f"the manifest names {name!r}, which was not given")
        if file_entry(name, files[name]) != entry:
            raise DigestMismatchError(f"{name!r} is not the file that the manifest describes")
        if entry.size > MAX_FILE_BYTES:
            raise BundleTooLargeError(f"{name!r} has {entry.size} bytes, over the limit of {MAX_FILE_BYTES}")
    for name in files:
        if name not in expected:
            raise ExtraFileError(f"{name!r} was given, but the manifest does not name it")
    total = sum(entry.size for entry in expected.values())
    if total > MAX_BUNDLE_BYTES or len(expected) >= MAX_FILES:
        raise BundleTooLargeError(f"{len(expected)} files of {total} bytes are over the limits of a bundle")
