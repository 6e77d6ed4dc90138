"""A small HTTP/1.1 server for a few local clients: one thread a connection, keep-alive, hard limits everywhere.

It is strict (RFC 9112): CRLF line ends, one Content-Length, no chunked bodies, no folded headers. Nothing a client
sends can stop it: a malformed request is answered and its connection closed, a failing handler is a 500, a slow
sender meets its deadline, and connections beyond the limit are turned away.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import socket
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from outrider.runtime.errors import BadConfigError, PortInUseError
from outrider.runtime.server.wire import BadRequest, Head, Request, Response, error_response, parse_head, render

log = logging.getLogger(__name__)

Handler = Callable[[Request], Response]

_RECV_BYTES = 64 * 1024
_END_OF_HEAD = b"\r\n\r\n"
_BACKLOG = 128


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may do. Sizes are bytes, times seconds.

    `request_s` runs from a request's first byte until its body is complete; `idle_s` is how long a kept-alive
    connection may stay silent.
    """

    head_bytes: int = 16 * 1024
    body_bytes: int = 16 * 1024 * 1024
    request_s: float = 30.0
    idle_s: float = 75.0
    connections: int = 128


class HttpServer:
    """Listens, reads requests, hands each to `handler` on its connection's thread, and sends the answer."""

    def __init__(self, handler: Handler, *, limits: Limits | None = None) -> None:
        self._handler = handler
        self._limits = limits or Limits()
        self._listeners: list[socket.socket] = []
        self._socket_path: Path | None = None
        self._connections: set[_Connection] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._wake_r, self._wake_w = os.pipe()
        self._thread: threading.Thread | None = None

    def listen_tcp(self, host: str, port: int) -> tuple[str, int]:
        """Bind a TCP listener; port 0 takes any free one. Raises PortInUseError. Returns the bound address."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(_BACKLOG)
        except OSError as e:
            listener.close()
            hint = "stop the other program, or set 'port' in device.toml"
            if e.errno == errno.EADDRINUSE:
                raise PortInUseError(f"{host}:{port} is already in use", hint=hint) from e
            raise BadConfigError(f"cannot listen on {host}:{port}: {e.strerror}") from e
        self._add(listener)
        address = listener.getsockname()
        return str(address[0]), int(address[1])

    def listen_unix(self, path: Path) -> Path:
        """Bind a Unix socket for its owner and group. A socket left by a dead process is replaced.

        Raises PortInUseError where a living process answers on it, or where the path is something else.
        """
        _clear_stale_socket(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(path))
            path.chmod(0o660)
            listener.listen(_BACKLOG)
        except OSError as e:
            listener.close()
            raise BadConfigError(f"cannot listen on {path}: {e.strerror}", hint="set 'socket' in device.toml") from e
        self._add(listener)
        self._socket_path = path
        return path

    def start(self) -> None:
        """Accept connections from now on."""
        self._thread = threading.Thread(target=self._accept_loop, name="http-accept", daemon=True)
        self._thread.start()

    def stop(self, *, drain_s: float = 5.0) -> None:
        """Stop accepting, let running requests finish for up to `drain_s`, then close everything."""
        self._stopping.set()
        os.write(self._wake_w, b"x")
        if self._thread is not None:
            self._thread.join()
        for listener in self._listeners:
            listener.close()
        if self._socket_path is not None:
            self._socket_path.unlink(missing_ok=True)
        self._drain(time.monotonic() + drain_s)
        os.close(self._wake_r)
        os.close(self._wake_w)

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called: answers carry `Connection: close` from then on."""
        return self._stopping.is_set()

    def _add(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._listeners.append(listener)

    def _accept_loop(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_r, selectors.EVENT_READ)
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ, listener)
            while not self.stopping:
                for key, _ in selector.select():
                    if isinstance(key.data, socket.socket):
                        self._accept(key.data)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError as e:
            if e.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                log.warning("cannot accept a connection: %s", e.strerror)
                self._stopping.wait(0.1)  # the listener stays readable: do not spin
            return
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(client)
        with self._lock:
            full = len(self._connections) >= self._limits.connections
            if not full:
                self._connections.add(connection)
        if full:
            _turn_away(client)
            return
        threading.Thread(target=self._serve, args=(connection,), name="http-client", daemon=True).start()

    def _serve(self, connection: _Connection) -> None:
        try:
            while not self.stopping and self._serve_one(connection):
                pass
        except OSError:
            pass  # the client is gone
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _serve_one(self, connection: _Connection) -> bool:
        """Answer one request. False: the connection is finished."""
        try:
            request = _read_request(connection, self._limits)
            if request is None:
                return False
            response = self._handle(request)
            keep = request.keep_alive and not self.stopping and not response.close
        except BadRequest as e:
            response, keep = error_response(e.status, e.message), False
        connection.send(render(response, keep_alive=keep), self._limits.request_s)
        connection.busy = False
        if not keep and response.status >= 400:
            connection.linger()
        return keep

    def _handle(self, request: Request) -> Response:
        try:
            return self._handler(request)
        except BadRequest as e:
            return error_response(e.status, e.message)
        except Exception:
            log.exception("the handler of %s %s failed", request.method, request.path)
            return error_response(500, "internal error, see the device's log")

    def _drain(self, deadline: float) -> None:
        while True:
            with self._lock:
                connections = list(self._connections)
            if not connections:
                return
            overdue = time.monotonic() >= deadline
            for connection in connections:
                if overdue or not connection.busy:
                    connection.shut()
            if overdue:
                return
            time.sleep(0.01)


class _Connection:
    """A client's socket with what was read ahead of the present request."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self.buffer = bytearray()
        self.busy = False

    def fill(self, timeout_s: float) -> bool:
        """Read more bytes into the buffer. False: the client has closed. Raises TimeoutError."""
        if timeout_s <= 0:
            raise TimeoutError
        self._client.settimeout(timeout_s)
        data = self._client.recv(_RECV_BYTES)
        self.buffer += data
        return bool(data)

    def send(self, data: bytes, timeout_s: float) -> None:
        self._client.settimeout(timeout_s)
        self._client.sendall(data)

    def linger(self) -> None:
        """Read off what a refused client still sends, for a moment, so that it gets the answer and no reset."""
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + 0.5
            while self.fill(deadline - time.monotonic()):
                self.buffer.clear()

    def shut(self) -> None:
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._client.close()


@dataclass
class _Clock:
    """One request's deadline, which starts at its first byte."""

    request_s: float
    deadline: float = field(default=0.0)

    def start(self) -> None:
        self.deadline = time.monotonic() + self.request_s

    def left_s(self) -> float:
        return self.deadline - time.monotonic()


def _read_request(connection: _Connection, limits: Limits) -> Request | None:
    """The next request, or None where the client has closed or stayed silent. Raises BadRequest."""
    clock = _Clock(limits.request_s)
    if not connection.buffer:
        try:
            if not connection.fill(limits.idle_s):
                return None
        except TimeoutError:
            return None
    connection.busy = True
    clock.start()
    try:
        head = _read_head(connection, limits, clock)
        return None if head is None else _read_body(connection, head, limits, clock)
    except TimeoutError as e:
        raise BadRequest(408, f"the request was not complete after {limits.request_s:g} s") from e


def _read_head(connection: _Connection, limits: Limits, clock: _Clock) -> Head | None:
    searched = 0
    while (end := connection.buffer.find(_END_OF_HEAD, searched)) < 0:
        if len(connection.buffer) > limits.head_bytes:
            raise BadRequest(431, f"the request's head is over {limits.head_bytes} bytes")
        searched = max(0, len(connection.buffer) - len(_END_OF_HEAD) + 1)
        if not connection.fill(clock.left_s()):
            return None
    if end > limits.head_bytes:
        raise BadRequest(431, f"the request's head is over {limits.head_bytes} bytes")
    raw = bytes(connection.buffer[:end])
    del connection.buffer[: end + len(_END_OF_HEAD)]
    return parse_head(raw)


def _read_body(connection: _Connection, head: Head, limits: Limits, clock: _Clock) -> Request | None:
    length = head.content_length
    if length > limits.body_bytes:
        raise BadRequest(413, f"a body of {length} bytes is over the limit of {limits.body_bytes}")
    if head.expects_continue and len(connection.buffer) < length:
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n", limits.request_s)
    while len(connection.buffer) < length:
        if not connection.fill(clock.left_s()):
            return None
    body = bytes(connection.buffer[:length])
    del connection.buffer[:length]
    return Request(
        method=head.method,
        path=head.path,
        headers=head.headers,
        body=body,
        keep_alive=head.keep_alive,
        deadline=clock.deadline,
    )


def _turn_away(client: socket.socket) -> None:
    with contextlib.suppress(OSError), client:
        client.settimeout(0.1)
        client.sendall(render(error_response(503, "too many connections"), keep_alive=False))


def _clear_stale_socket(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    if not stat.S_ISSOCK(mode):
        raise PortInUseError(f"{path} exists and is not a socket", hint="set 'socket' in device.toml")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    raise PortInUseError(f"another process listens on {path}", hint="stop it, or set 'socket' in device.toml")
