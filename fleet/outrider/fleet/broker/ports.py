"""The port a broker listens on, and whether it may be had."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from outrider.runtime.durable import write_file
from outrider.runtime.errors import BadConfigError, PortInUseError


def stable_port(record: Path, host: str, wanted: int | None) -> int:
    """`wanted`, or where that is None or 0 the recorded port if it is free, or any free one; it is then recorded.

    Raises PortInUseError where `wanted` is taken.
    """
    if wanted:
        _check(host, wanted)
        port = wanted
    else:
        port = _recorded(record, host) or _bind(host, 0)
    write_file(record, f"{port}\n".encode())
    return port


def _recorded(record: Path, host: str) -> int | None:
    try:
        port = int(record.read_text("ascii"))
        return _bind(host, port)
    except (OSError, ValueError, OverflowError):
        return None


def _check(host: str, port: int) -> None:
    try:
        _bind(host, port)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {port} on {host} is already in use", hint="stop what listens there, or choose another port"
            ) from e
        raise BadConfigError(f"cannot listen on {host}:{port}: {e.strerror}") from e
    except OverflowError as e:
        raise BadConfigError(f"{port} is not a port") from e


def _bind(host: str, port: int) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        bound: int = probe.getsockname()[1]
        return bound
