"""Writing files so that they are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from outrider.runtime.errors import StorageError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all. Raises StorageError."""
    part = path.with_name(f".{os.getpid()}.{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as e:
        raise StorageError(f"cannot write {path}: {e.strerror}") from e
    finally:
        part.unlink(missing_ok=True)
