"""The HTTP server: uvicorn in a thread of its own, so that the process's signals stay ours."""

from __future__ import annotations

import errno
import socket
import threading
import time

import uvicorn
from fastapi import FastAPI

from outrider.runtime.errors import BadConfigError, PortInUseError, UnavailableError

START_TIMEOUT_S = 15.0
GRACE_S = 3  # open requests get so long when the server stops


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is known before anything else starts. Raises PortInUseError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as e:
        raise BadConfigError(f"the host {host!r} is not an address of this machine: {e}") from e
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(1024)
    except OSError as e:
        made.close()
        if e.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"{host}:{port} is in use", hint="stop what listens there, or choose another with --port"
            ) from e
        raise BadConfigError(f"cannot listen on {host}:{port}: {e.strerror}") from e
    return made


class ApiServer:
    """Serves one application on one bound socket, which it closes at the end."""

    def __init__(self, app: FastAPI, listener: socket.socket) -> None:
        self._listener = listener
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="api", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it still serves."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start, and return once requests are answered. Raises UnavailableError."""
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._server.started:
            if not self.alive or time.monotonic() > deadline:
                self.stop()
                raise UnavailableError("the HTTP server did not start")
            time.sleep(0.01)

    def stop(self) -> None:
        """Let open requests end, for a moment, and stop. May be called twice."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(GRACE_S + 2)
            if self.alive:
                self._server.force_exit = True
                self._thread.join(GRACE_S)
        self._listener.close()
