"""SHA-256 of streams and files that need not fit in memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

_CHUNK = 1 << 20


def hash_stream(stream: BinaryIO) -> tuple[str, int]:
    """Digest in hex and length in bytes of what is left of a stream."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def hash_file(path: Path) -> tuple[str, int]:
    """Digest in hex and length in bytes of a file."""
    with path.open("rb") as file:
        return hash_stream(file)
