"""Writing so that a crash or a power cut leaves the old or the new, never a mixture.

The order is always: write under another name, flush the file, rename, flush the folder. Whatever in Outrider must
last is written through this module.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from outrider.runtime.errors import StorageError, StorageFullError

Checkpoint = Callable[[str], None]
"""Called with a name just before and after each durable act; tests die there, production does nothing."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def no_checkpoint(_name: str) -> None:
    """The checkpoint of production: nothing happens."""


@contextlib.contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn OSError into StorageFullError (no space, quota, file size limit) or StorageError."""
    try:
        yield
    except OSError as e:
        reason = f"cannot {doing}: {e.strerror or e}"
        if e.errno in _FULL:
            raise StorageFullError(reason) from e
        raise StorageError(reason) from e


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries (new names, renames, removals) to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder, and its parents, that survive a power cut. One that exists is left as it is."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        fsync_folder(place.parent)


def fsync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file's content at once, with these permissions from its first moment on. Raises StorageError."""
    with storage_errors(f"write {path}"), whole_file(path, mode=mode) as file:
        file.write(data)


def write_new_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Make a file, whole or not at all, where there is none yet. Raises FileExistsError and leaves that one alone."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # a rename would replace what is there
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


@contextlib.contextmanager
def whole_file(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A file to write (and read back) that takes `path`'s place when the block ends well, and is gone otherwise.

    Two writers of one path don't meet: each has a temporary file of its own. Raises OSError.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w+b") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def replace_link(link: Path, target: str) -> None:
    """Point a symbolic link elsewhere at once: a reader sees the old target or the new one."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
    fsync_folder(link.parent)


def remove_link(link: Path) -> None:
    """Remove a symbolic link. One that is not there is fine."""
    link.unlink(missing_ok=True)
    fsync_folder(link.parent)
