"""The client against servers that misbehave, and against the fleet's own errors."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from outrider.runtime import errors
from outrider.runtime.api_client import FleetClient
from outrider.runtime.api_client.http import exchange, parse_base_url, refusal
from outrider.runtime.errors import (
    ApiError,
    BadConfigError,
    BadInputError,
    ConflictError,
    NotFoundError,
    OutriderError,
    UnavailableError,
)

Serve = Callable[[bytes], FleetClient]


@pytest.fixture
def answering() -> Iterator[Serve]:
    """A server that answers every connection with the same bytes."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(answer: bytes) -> FleetClient:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def loop() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        threads.append(thread)
        return FleetClient(f"http://127.0.0.1:{listener.getsockname()[1]}", "key", timeout_s=2)

    yield serve
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(5)


def _http(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def _error(kind: str, hint: str | None = None) -> bytes:
    return msgspec.json.encode({"error": {"type": kind, "message": "said the fleet", "hint": hint}})


def test_nobody_listens(free_port: int) -> None:
    client = FleetClient(f"http://127.0.0.1:{free_port}")
    with pytest.raises(UnavailableError, match="does not answer"):
        client.devices()
    assert not client.healthy()


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = FleetClient(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)
        with pytest.raises(UnavailableError):
            client.devices()


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n[]"])
def test_answers_that_are_cut_or_not_http(answering: Serve, answer: bytes) -> None:
    with pytest.raises(UnavailableError):
        answering(answer).devices()


@pytest.mark.parametrize("body", [b"<html>", b'{"a": 1}', b"\xff"])
def test_answers_that_are_not_a_fleets(answering: Serve, body: bytes) -> None:
    client = answering(_http("200 OK", body))
    with pytest.raises(ApiError):
        client.devices()
    assert not client.healthy()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        ("404 Not Found", _error("NotFoundError"), NotFoundError),
        ("409 Conflict", _error("ConflictError"), ConflictError),
        ("503 Busy", _error("UnavailableError"), UnavailableError),
        ("418 Teapot", _error("SomethingNew"), BadInputError),
        ("401 Unauthorized", _error("Unauthorized"), BadInputError),
        ("500 Oops", _error("SomethingNew"), ApiError),
        ("400 Bad", _error("annotations"), BadInputError),
        ("400 Bad", _error("ClassVar"), BadInputError),
        ("502 Bad Gateway", b"<html>proxy</html>", ApiError),
        ("302 Found", b"", ApiError),
    ],
)
def test_refusals_become_errors(answering: Serve, status: str, body: bytes, kind: type[OutriderError]) -> None:
    with pytest.raises(OutriderError) as caught:
        answering(_http(status, body)).devices()
    assert type(caught.value) is kind


def test_a_full_disk_is_not_taken_for_the_network(web: Any) -> None:
    info = web.published()
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(errors.StorageFullError):
        exchange(
            parse_base_url(web.url),
            "GET",
            f"/v1/bundles/{info.sha256}/content",
            headers={"Authorization": f"Bearer {web.key}"},
            into=full,
            timeout_s=5,
        )


def test_message_and_hint_survive() -> None:
    error = refusal(409, _error("ConflictError", "try again"), "GET /")
    assert (error.message, error.hint) == ("said the fleet", "try again")


def test_every_error_of_the_tree_survives_the_wire() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, OutriderError)]
    assert len(kinds) > 30
    for kind in kinds:
        assert type(refusal(400, _error(kind.__name__), "GET /")) is kind


@pytest.mark.parametrize("url", ["", "fleet", "ftp://fleet", "http://", "http://a:b", "http://a:99999", "http://a:0"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(BadConfigError):
        FleetClient(url)


def test_names_cannot_leave_their_place_in_the_path(web: Any) -> None:
    for name in ("../jobs", "..", "a/b", "?x=1", "%2e%2e", "#", "ü"):
        with pytest.raises(NotFoundError):
            web.client.device(name)


def test_unknown_fields_in_requests_are_refused_and_named(web: Any) -> None:
    with pytest.raises(errors.BadMessageError, match="canarry"):
        exchange(
            parse_base_url(web.url),
            "POST",
            "/v1/rollouts",
            headers={"Authorization": f"Bearer {web.key}"},
            body=b'{"name": "a", "version": "1", "canarry": 1}',
            timeout_s=5,
        )


def test_an_early_refusal_of_a_large_upload_is_still_read(web: Any, tmp_path: Any) -> None:
    path = tmp_path / "large.orb"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    with pytest.raises(BadInputError, match="not known"):
        FleetClient(web.url, "ork_wrong").publish_bundle(path, b"{}")
