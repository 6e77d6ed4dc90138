"""Fixtures for every test: tools and packages that must be there, and free ports.

The benchmarks stand beside the packages, not in them: tests import them from the repository's root.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for tests that load ONNX Runtime themselves

if TYPE_CHECKING:
    from benchmarks.networks.nets import Net

    from outrider.targets.emulation import EmulatedPython

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


@pytest.fixture(autouse=True)
def ctrl_c_works() -> None:
    """SIGINT as a terminal leaves it: a command that was interrupted in this process ignores it to its end, and a
    shell that starts the tests in the background has it ignored. Children would inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def no_compile_cache() -> None:
    """What an earlier run compiled must not stand in for what this one would."""
    os.environ["OUTRIDER_COMPILE_CACHE"] = "off"


@pytest.fixture(scope="session")
def require_tool() -> Callable[[str], str]:
    """Find a program on PATH: its path, or a skip with the reason (a failure under OUTRIDER_REQUIRE_ALL=1)."""

    def find(name: str) -> str:
        path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if path is not None:
            return path
        return _missing(f"{name} is not installed")

    return find


@pytest.fixture(scope="session")
def require_package() -> Callable[[str], None]:
    """Ask for an optional package: a skip with the reason where it is missing (or a failure, as above)."""

    def find(name: str) -> None:
        if importlib.util.find_spec(name) is None:
            _missing(f"the package {name} is not installed")

    return find


@pytest.fixture(scope="session")
def emulated_python() -> Callable[..., EmulatedPython]:
    """The Python of a target with some packages, fetched if need be; a skip where it cannot be (as above)."""
    from outrider.runtime.errors import ToolchainError, UnavailableError
    from outrider.targets import get_target
    from outrider.targets.emulation import ready

    def find(name: str, *packages: str) -> EmulatedPython:
        try:
            return ready(get_target(name), packages)
        except (ToolchainError, UnavailableError) as e:
            return _missing(str(e))

    return find


@pytest.fixture(scope="session")
def require_net() -> Callable[[str], Net]:
    """Make a net of `benchmarks.networks.nets`, or take it from the cache; where torch or a registry is missing, a skip
    with the reason (a failure under OUTRIDER_REQUIRE_ALL=1).
    """

    def find(name: str) -> Net:
        from benchmarks.networks.nets import net

        from outrider.runtime.errors import UnavailableError

        try:
            return net(name)
        except UnavailableError as e:
            return _missing(str(e))

    return find


def _missing(reason: str) -> NoReturn:
    if os.environ.get("OUTRIDER_REQUIRE_ALL") == "1":
        pytest.fail(f"{reason}, and OUTRIDER_REQUIRE_ALL=1 asks for it")
    pytest.skip(reason)


@pytest.fixture
def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
