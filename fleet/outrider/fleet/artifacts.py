"""Bundle bytes over HTTP, whole or by range (RFC 9110), so that a device resumes where it was cut."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import Response
from fastapi.responses import StreamingResponse

from outrider.runtime.errors import StorageError

CHUNK_BYTES = 256 * 1024
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


@dataclass(frozen=True)
class ByteRange:
    """Bytes `first` to `last`, both included."""

    first: int
    last: int


class UnsatisfiableRange(Exception):
    """The range lies outside the file."""


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """The one range that a `Range` header asks for; None where it asks for none that is understood.

    What is not understood, several ranges included, is answered with the whole file, as RFC 9110 allows. Raises
    UnsatisfiableRange.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.group() == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        if length == 0:
            raise UnsatisfiableRange
        return ByteRange(size - length, size - 1)
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise UnsatisfiableRange
    return ByteRange(int(first), min(int(last), size - 1) if last else size - 1)


def content_response(path: Path, sha256: str, size: int, headers: Mapping[str, str]) -> Response:
    """Answer a request for a bundle's bytes: 200, 206, 304 or 416. The ETag is the SHA-256, so it never goes stale."""
    etag = f'"{sha256}"'
    common = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, max-age=31536000, immutable"}
    if _lists(headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=common)
    wanted = headers.get("range")
    if "if-range" in headers and headers["if-range"].strip() != etag:
        wanted = None  # the client holds a part of something else
    try:
        span = parse_range(wanted, size)
    except UnsatisfiableRange:
        return Response(status_code=416, headers={**common, "Content-Range": f"bytes */{size}"})
    if span is None:
        status, first, length = 200, 0, size
    else:
        status, first, length = 206, span.first, span.last - span.first + 1
        common["Content-Range"] = f"bytes {span.first}-{span.last}/{size}"
    if not path.is_file() or path.stat().st_size != size:
        raise StorageError(f"the file of bundle {sha256[:16]} is missing from the registry, or damaged")
    return StreamingResponse(
        _read(path, first, length),
        status_code=status,
        media_type="application/octet-stream",
        headers={**common, "Content-Length": str(length)},
    )


def _lists(header: str | None, etag: str) -> bool:
    return header is not None and (header.strip() == "*" or etag in (item.strip() for item in header.split(",")))


def _read(path: Path, first: int, length: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(first)
        while length:
            chunk = file.read(min(CHUNK_BYTES, length))
            if not chunk:  # the file shrank; the short body tells the client
                return
            length -= len(chunk)
            yield chunk
