"""One HTTP exchange with the fleet, on the standard library alone; every foreign exception is wrapped here."""

from __future__ import annotations

import errno
import http.client
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import SplitResult, urlencode, urlsplit

import msgspec

from outrider.runtime import errors
from outrider.runtime.api_client.types import ErrorBody
from outrider.runtime.errors import (
    ApiError,
    BadConfigError,
    BadInputError,
    OutriderError,
    StorageError,
    StorageFullError,
    UnavailableError,
)

MAX_ANSWER_BYTES = 256 << 20
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Answer:
    """A 2xx answer."""

    status: int
    body: bytes


def parse_base_url(url: str) -> SplitResult:
    """Split a base URL such as `http://127.0.0.1:8080`. Raises BadConfigError."""
    try:
        parts = urlsplit(url.rstrip("/"))
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError as e:
        raise BadConfigError(f"{url!r} is not a URL", hint="for example http://127.0.0.1:8080") from e
    if not usable:
        raise BadConfigError(f"{url!r} is not an http or https URL", hint="for example http://127.0.0.1:8080")
    return parts


def exchange(
    base: SplitResult,
    method: str,
    path: str,
    *,
    query: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
    body: bytes | BinaryIO | None = None,
    into: BinaryIO | None = None,
    timeout_s: float,
) -> Answer:
    """Send one request and read its answer.

    A file body must come with a Content-Length header and is streamed; with `into`, so is the body of a 2xx answer,
    and the answer's own is empty. `timeout_s` is for each step, not for the whole. Raises UnavailableError where the
    fleet cannot be reached, the error that the fleet named where it refused, StorageError where `into` cannot be
    written, ApiError for anything else.
    """
    given = {key: value for key, value in (query or {}).items() if value is not None}
    target = base.path + path + (f"?{urlencode(given)}" if given else "")
    connection = _connect(base, timeout_s)
    try:
        try:
            connection.request(method, target, body=body, headers=dict(headers or {}))
        except (BrokenPipeError, ConnectionResetError):
            if connection.sock is None:  # never connected, so there is no early refusal to read
                raise
        response = connection.getresponse()
        data = _read(response, into if _succeeded(response.status) else None)
    except (OSError, http.client.HTTPException) as e:
        where = f"{base.scheme}://{base.netloc}"
        raise UnavailableError(f"the fleet at {where} does not answer: {e}", hint="is 'outrider up' running?") from e
    finally:
        connection.close()
    if len(data) > MAX_ANSWER_BYTES:
        raise ApiError(f"the answer to {method} {path} is over {MAX_ANSWER_BYTES} bytes")
    if _succeeded(response.status):
        return Answer(response.status, data)
    raise refusal(response.status, data, f"{method} {path}")


def refusal(status: int, data: bytes, what: str) -> OutriderError:
    """The error that an answer stands for: the class that the fleet named, or the nearest one to the status."""
    try:
        detail = msgspec.json.decode(data, type=ErrorBody).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ApiError(f"{what} was answered {status}, not by an Outrider fleet")
    kind = getattr(errors, detail.type, None)
    if not (isinstance(kind, type) and issubclass(kind, OutriderError)):
        kind = BadInputError if status < 500 else ApiError
    return kind(detail.message, hint=detail.hint)


def _succeeded(status: int) -> bool:
    return 200 <= status < 300


def _read(response: http.client.HTTPResponse, into: BinaryIO | None) -> bytes:
    """The body, or what does not go `into` a file. Raises IncompleteRead for a body that was cut."""
    data = b""
    if into is None:
        data = response.read(MAX_ANSWER_BYTES + 1)
    else:
        while chunk := response.read(CHUNK_BYTES):
            _write(into, chunk)
    if response.length and len(data) <= MAX_ANSWER_BYTES:
        raise http.client.IncompleteRead(data, response.length)
    return data


def _write(into: BinaryIO, chunk: bytes) -> None:
    try:
        into.write(chunk)
    except OSError as e:  # or it would pass for trouble with the network
        kind = StorageFullError if e.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        raise kind(f"cannot write the answer: {e.strerror}") from e


def _connect(base: SplitResult, timeout_s: float) -> http.client.HTTPConnection:
    assert base.hostname is not None, "parse_base_url checked it"
    if base.scheme == "https":
        return http.client.HTTPSConnection(
            base.hostname, base.port, timeout=timeout_s, context=ssl.create_default_context()
        )
    return http.client.HTTPConnection(base.hostname, base.port, timeout=timeout_s)
