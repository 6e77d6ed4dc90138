"""Bundle bytes by HTTP ranges, with the standard library alone."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urljoin, urlsplit

from outrider.runtime.errors import UnavailableError
from outrider.runtime.fetch.blocks import BlockFile
from outrider.runtime.fetch.source import Stop
from outrider.runtime.messages import BLOCK_BYTES, SlotDesired

TIMEOUT_S = 15.0
BLOCK_PATIENCE_S = 120.0
"""After this a server that trickles is given up."""
_PARTIAL = re.compile(r"^bytes (\d+)-(\d+)/(\d+|\*)$")


class HttpSource:
    """Fetches from the URLs of the desired document.

    `token` is sent as a bearer token to `origin` (`https://host:port`) only; without `origin`, to every URL.
    A URL that begins with `/` is one of `origin`. `timeout_s` limits each wait for the server.
    """

    name = "http"

    def __init__(self, token: str | None = None, *, origin: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._token = token
        self._origin = origin
        self._timeout_s = timeout_s

    def fetch(self, wanted: SlotDesired, blocks: BlockFile, stop: Stop) -> None:
        """Write the missing blocks, starting again after a cut for as long as each try brings at least one."""
        trouble = ["the desired document names no URL"] if not wanted.urls else []
        for url in wanted.urls:
            place = urlsplit(urljoin(self._origin or "", url))
            while not (blocks.complete or stop()):
                before = len(blocks.missing())
                try:
                    self._fetch_from(place, blocks, stop)
                except UnavailableError as e:
                    blocks.flush()
                    if len(blocks.missing()) == before:
                        trouble.append(str(e))
                        break
            if blocks.complete or stop():
                return
        raise UnavailableError("; ".join(trouble))

    def _fetch_from(self, place: SplitResult, blocks: BlockFile, stop: Stop) -> None:
        """One connection, one request a gap."""
        where = f"{place.scheme}://{place.netloc}"
        try:
            connection = self._connect(place)
        except (ValueError, http.client.InvalidURL) as e:
            raise UnavailableError(f"{where} is not an HTTP address") from e
        try:
            for first, count in list(blocks.gaps()):
                if stop():
                    return
                self._fetch_gap(connection, place, blocks, (first, count), stop)
        except (OSError, http.client.HTTPException) as e:
            raise UnavailableError(f"{where}: {e or type(e).__name__}") from e
        finally:
            connection.close()

    def _connect(self, place: SplitResult) -> http.client.HTTPConnection:
        kinds: dict[str, Callable[..., http.client.HTTPConnection]] = {
            "http": http.client.HTTPConnection,
            "https": http.client.HTTPSConnection,
        }
        if place.scheme not in kinds or not place.hostname:
            raise ValueError(place.geturl())
        return kinds[place.scheme](place.hostname, place.port, timeout=self._timeout_s)

    def _fetch_gap(
        self,
        connection: http.client.HTTPConnection,
        place: SplitResult,
        blocks: BlockFile,
        gap: tuple[int, int],
        stop: Stop,
    ) -> None:
        start, end = gap[0] * BLOCK_BYTES, min((gap[0] + gap[1]) * BLOCK_BYTES, blocks.size)
        path = place.path or "/"
        connection.request(
            "GET", f"{path}?{place.query}" if place.query else path, headers=self._headers(place, start, end)
        )
        response = connection.getresponse()
        position = _start_of(response, start, end)
        while position < end and not stop():
            index = position // BLOCK_BYTES
            data = _read_block(response, blocks.length(index), stop)
            if data is None:
                break
            blocks.write(index, data)
            position += len(data)
        if position < end or response.read(1):
            connection.close()  # stopped half-way, or the server sends more than was asked for

    def _headers(self, place: SplitResult, start: int, end: int) -> dict[str, str]:
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity", "User-Agent": "outriderd"}
        if self._token is not None and self._is_origin(place):
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _is_origin(self, place: SplitResult) -> bool:
        if self._origin is None:
            return True
        own = urlsplit(self._origin)
        return (place.scheme, place.netloc) == (own.scheme, own.netloc)


def _start_of(response: http.client.HTTPResponse, start: int, end: int) -> int:
    """The offset at which the body begins: the range's, or 0 where the server sends the whole file."""
    if response.status == http.client.OK:
        return 0
    if response.status != http.client.PARTIAL_CONTENT:
        raise UnavailableError(f"the server answered {response.status} {response.reason}")
    match = _PARTIAL.match(response.headers.get("Content-Range", ""))
    if match is None or (int(match[1]), int(match[2])) != (start, end - 1):
        raise UnavailableError("the server sent another range than was asked for")
    return start


def _read_block(response: http.client.HTTPResponse, length: int, stop: Stop) -> bytearray | None:
    """The next `length` bytes of the body, or None where `stop()` ended it."""
    data = bytearray()
    patience = time.monotonic() + BLOCK_PATIENCE_S
    while len(data) < length:
        if stop():
            return None
        if time.monotonic() > patience:
            raise UnavailableError(f"a block took longer than {BLOCK_PATIENCE_S:.0f} s")
        more = response.read1(length - len(data))
        if not more:
            raise UnavailableError("the connection was cut")
        data += more
    return data
