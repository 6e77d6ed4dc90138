"""`outrider up` as a process: what it prints, what it leaves behind, and that it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from outrider.fleet.server import bind
from outrider.runtime.api_client import FleetClient
from outrider.runtime.api_client.connect import read_key_file
from outrider.runtime.errors import BadConfigError, PortInUseError

pytestmark = pytest.mark.system
START_S = 40.0


class Up:
    """One `outrider up` process and what it printed."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OUTRIDER_")}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from outrider.runtime.cli import main; sys.exit(main())",
                "up",
                "--data-dir",
                str(data_dir),
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        self.data_dir = data_dir
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line

    def wait_until_up(self) -> FleetClient:
        deadline = time.monotonic() + START_S
        while True:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)
            if (self.data_dir / "api.url").exists():
                key = read_key_file(self.data_dir / "admin.key")
                client = FleetClient((self.data_dir / "api.url").read_text(), key)
                if client.healthy():
                    return client

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: int | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*arguments: str, data_dir: Path | None = None) -> Up:
        started.append(Up(data_dir or tmp_path / "data", "--port", "0", *arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.end(signal.SIGKILL)


def _gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not alive


@pytest.mark.parametrize("broker", ["mosquitto", "iotcore"])
def test_up_serves_and_ends_without_a_trace(
    up: Callable[..., Up], require_tool: Callable[[str], str], broker: str
) -> None:
    if broker == "mosquitto":
        require_tool("mosquitto")
    fleet = up("--broker", broker)
    client = fleet.wait_until_up()
    assert client.health().broker == broker
    assert client.devices() == []
    key = read_key_file(fleet.data_dir / "admin.key")
    children = fleet.children()
    assert fleet.end(signal.SIGINT) == 130
    assert _gone(children)
    assert key in fleet.text
    assert "No publisher is trusted" in fleet.text
    assert not (fleet.data_dir / "api.url").exists()
    assert not list(fleet.data_dir.rglob("*.part"))
    again = up("--broker", broker)
    assert again.wait_until_up().health().broker == broker
    children = again.children()
    assert again.end(signal.SIGTERM) == 0
    assert _gone(children)
    assert key not in again.text, "the key is shown once"
    assert re.search(r"ork_\w{8}", again.text) is None


@pytest.mark.parametrize("moment", [0.3, 1.0, 1.4, 1.8])
def test_ctrl_c_at_any_moment_of_the_start(up: Callable[..., Up], moment: float) -> None:
    fleet = up("--broker", "auto")
    time.sleep(moment)
    children = fleet.children()
    code = fleet.end(signal.SIGINT)
    assert code in (130, 1, -signal.SIGINT), fleet.text
    assert _gone(children)
    assert not list(fleet.data_dir.rglob("*.part"))
    assert not (fleet.data_dir / "api.url").exists()


def test_a_port_in_use_starts_nothing(up: Callable[..., Up]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fleet = up("--port", str(taken.getsockname()[1]))
        assert fleet.end() == 1
    assert "is in use" in fleet.text
    assert not fleet.data_dir.exists()


def test_a_publisher_key_that_cannot_be_read_starts_nothing(up: Callable[..., Up], tmp_path: Path) -> None:
    fleet = up("--publisher-key", str(tmp_path / "none.pub"))
    assert fleet.end() == 1
    assert "cannot read the key" in fleet.text
    assert not fleet.data_dir.exists()


def test_one_fleet_a_data_folder(up: Callable[..., Up]) -> None:
    first = up()
    client = first.wait_until_up()
    second = up()
    assert second.end() == 1
    assert "another fleet runs" in second.text
    assert client.healthy()
    assert first.end(signal.SIGTERM) == 0


def test_kill_9_and_start_again(up: Callable[..., Up]) -> None:
    first = up()
    first.wait_until_up().create_enrolment_token()
    children = first.children()
    first.end(signal.SIGKILL)
    second = up()
    client = second.wait_until_up()
    actions = [entry.action for entry in client.audit()]
    assert actions.count("key.create") == actions.count("token.create") == 1
    assert client.verify_audit().intact
    assert second.end(signal.SIGTERM) == 0
    assert _gone(children)


def test_bad_settings_are_named(up: Callable[..., Up]) -> None:
    fleet = up("--tenant", "a/b")
    assert fleet.end() == 1
    assert "tenant" in fleet.text


def test_binding(free_port: int) -> None:
    with bind("127.0.0.1", free_port), pytest.raises(PortInUseError):
        bind("127.0.0.1", free_port)
    with pytest.raises(BadConfigError):
        bind("192.0.2.1", 0)
    with pytest.raises(BadConfigError):
        bind("no such host", 0)
