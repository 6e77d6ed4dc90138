"""Fixtures for every test: tools that must be there, and free ports."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable

import pytest


@pytest.fixture(autouse=True)
def ctrl_c_works() -> None:
    """SIGINT as a terminal leaves it: a command that was interrupted in this process ignores it to its end, and a
    shell that starts the tests in the background has it ignored. Children would inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def require_tool() -> Callable[[str], str]:
    """Find a program on PATH: its path, or a skip with the reason (a failure under OUTRIDER_REQUIRE_ALL=1)."""

    def find(name: str) -> str:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if path is not None:
            return path
        reason = f"{name} is not installed"
        if os.environ.get("OUTRIDER_REQUIRE_ALL") == "1":
            pytest.fail(f"{reason}, and OUTRIDER_REQUIRE_ALL=1 asks for it")
        pytest.skip(reason)

    return find


@pytest.fixture
def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
