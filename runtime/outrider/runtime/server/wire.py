"""HTTP/1.1 on the wire: the parsed head of a request, and the bytes of a response. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import unquote

import msgspec

from outrider.runtime.errors import BadMessageError

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_MAX_HEADERS = 100
_SINGLE = frozenset({"content-length", "transfer-encoding", "host"})


class BadRequest(BadMessageError):
    """The request cannot be served; `status` is the HTTP status to answer with."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Head:
    """A request line and its headers; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    content_length: int
    keep_alive: bool
    expects_continue: bool


@dataclass(frozen=True, kw_only=True)
class Request:
    """A whole request. `deadline` is in `time.monotonic()` seconds."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    keep_alive: bool
    deadline: float


@dataclass(frozen=True, kw_only=True)
class Response:
    """An answer. `close` ends the connection after it."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = field(default=False)


def parse_head(raw: bytes) -> Head:
    """Parse a head without its blank line. Raises BadRequest."""
    first, *lines = raw.split(b"\r\n")
    method, target, minor = _parse_request_line(first)
    headers = _parse_headers(lines)
    if "transfer-encoding" in headers:
        raise BadRequest(501, "transfer encodings are not supported, send a Content-Length")
    if minor == 1 and "host" not in headers:
        raise BadRequest(400, "an HTTP/1.1 request needs a Host header")
    connection = {part.strip() for part in headers.get("connection", "").lower().split(",")}
    return Head(
        method=method,
        path=unquote(target.split("?", 1)[0], errors="replace"),
        headers=headers,
        content_length=_content_length(headers, method),
        keep_alive="close" not in connection and (minor == 1 or "keep-alive" in connection),
        expects_continue=headers.get("expect", "").lower() == "100-continue",
    )


def render(response: Response, *, keep_alive: bool) -> bytes:
    """The bytes of a response."""
    phrase = HTTPStatus(response.status).phrase
    extra = "".join(f"{name}: {value}\r\n" for name, value in response.headers)
    head = (
        f"HTTP/1.1 {response.status} {phrase}\r\nContent-Type: {response.content_type}\r\n"
        f"Content-Length: {len(response.body)}\r\n{extra}"
        f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
    )
    return head.encode("latin-1") + response.body


def json_response(body: object, status: int = 200) -> Response:
    """A response with a JSON body."""
    return Response(status=status, body=msgspec.json.encode(body))


def error_response(status: int, message: str) -> Response:
    """The protocol's error body: `{"error": message}`."""
    return json_response({"error": message}, status)


def _parse_request_line(line: bytes) -> tuple[str, str, int]:
    parts = line.split(b" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or not _TARGET.fullmatch(parts[1]):
        raise BadRequest(400, "malformed request line")
    if not parts[2].startswith(b"HTTP/"):
        raise BadRequest(400, "malformed request line")
    if parts[2] not in (b"HTTP/1.0", b"HTTP/1.1"):
        raise BadRequest(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if not parts[1].startswith(b"/"):
        raise BadRequest(400, "the request target is not a path")
    return parts[0].decode("ascii"), parts[1].decode("ascii"), int(parts[2][-1:])


def _parse_headers(lines: list[bytes]) -> dict[str, str]:
    if len(lines) > _MAX_HEADERS:
        raise BadRequest(431, f"more than {_MAX_HEADERS} headers")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or any(byte < 32 and byte != 9 for byte in value):
            raise BadRequest(400, "malformed header")
        key, text = name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")
        if key in headers:
            if key in _SINGLE:
                raise BadRequest(400, f"more than one {key} header")
            text = f"{headers[key]}, {text}"
        headers[key] = text
    return headers


def _content_length(headers: dict[str, str], method: str) -> int:
    value = headers.get("content-length")
    if value is None:
        if method in ("POST", "PUT", "PATCH"):
            raise BadRequest(411, "a request with a body needs a Content-Length")
        return 0
    if not _DIGITS.fullmatch(value.encode("latin-1")):
        raise BadRequest(400, "malformed Content-Length")
    return int(value)
