"""systemd's notification protocol (sd_notify(3)): ready, stopping, watchdog. Without systemd nothing happens."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> bool:
    """Send a state such as `READY=1` to `$NOTIFY_SOCKET`; whether there was somebody to tell."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.connect("\0" + address[1:] if address.startswith("@") else address)
        client.sendall(state.encode("utf-8"))
        return True
    return False


def watchdog_interval_s() -> float | None:
    """How often to send `WATCHDOG=1`: half of what systemd allows, or None where it does not watch this process."""
    try:
        allowed_us = int(os.environ["WATCHDOG_USEC"])
        watched_pid = int(os.environ.get("WATCHDOG_PID", str(os.getpid())))
    except (KeyError, ValueError):
        return None
    return allowed_us / 2e6 if watched_pid == os.getpid() and allowed_us > 0 else None
