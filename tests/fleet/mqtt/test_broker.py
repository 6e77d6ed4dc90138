"""Both brokers really speak what the fleet needs of MQTT 5, are supervised, and leave nothing behind."""

from __future__ import annotations

import base64
import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import psutil
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from outrider.fleet.broker import BROKERS, Broker, broker_class, start_broker, supervise
from outrider.fleet.broker.connack import ACCEPTED, connect_reason
from outrider.fleet.broker.mosquitto import PasswordFile, check_username, hash_password
from outrider.fleet.broker.supervise import Supervisor
from outrider.runtime.errors import BadConfigError, BadInputError, NotFoundError, PortInUseError, UnavailableError

Wait = Callable[..., Any]


class Client:
    """An MQTT client that keeps what it receives in a queue."""

    def __init__(self, broker: Broker, name: str, *, user: str = "", password: str = "", will: str = "") -> None:
        self.messages: queue.Queue[paho.MQTTMessage] = queue.Queue()
        self.granted: queue.Queue[Any] = queue.Queue()
        self.present: queue.Queue[bool] = queue.Queue()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5)  # type: ignore[attr-defined]
        self.client.username_pw_set(user or broker.manager_username, password or broker.manager_password)
        self.client.on_connect = lambda _c, _d, flags, _r, _p: self.present.put(flags.session_present)
        self.client.on_message = lambda _c, _d, message: self.messages.put(message)
        self.client.on_subscribe = lambda _c, _d, _m, reasons, _p: self.granted.put(reasons)
        if will:
            later = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
            later.WillDelayInterval = 1
            self.client.will_set(will, b"gone", 1, True, later)
        connect = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        connect.SessionExpiryInterval = 600
        self.client.connect(broker.host, broker.port, clean_start=False, properties=connect)
        self.client.loop_start()
        self.resumed = self.present.get(timeout=5)

    def subscribe(self, topic: str) -> None:
        self.client.subscribe(topic, 1)
        assert not any(reason.is_failure for reason in self.granted.get(timeout=5))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> None:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if expiry_s is not None:
            properties.MessageExpiryInterval = expiry_s
        self.client.publish(topic, payload, 1, retain, properties).wait_for_publish(5)

    def next(self) -> tuple[str, bytes, bool]:
        message = self.messages.get(timeout=5)
        return message.topic, message.payload, message.retain

    def cut(self) -> None:
        self.client._thread_terminate = True
        link = self.client.socket()
        assert isinstance(link, socket.socket)
        link.shutdown(socket.SHUT_RDWR)
        self.client.loop_stop()
        self.client._sock_close()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.mark.system
def test_it_speaks_mqtt_5_as_the_fleet_needs_it(broker: Broker, kind: str) -> None:
    broker.add_device("acme/a", "secret")
    manager = Client(broker, "manager")
    manager.subscribe(broker.up_filter)
    first = Client(broker, "acme-a", user="acme/a", password="secret", will="or1/acme/a/up/presence")
    first.subscribe("or1/acme/a/dn/#")

    manager.publish("or1/acme/a/dn/desired", b"document", retain=True)
    assert first.next() == ("or1/acme/a/dn/desired", b"document", False)
    first.publish("or1/acme/a/up/evt", b"event")
    assert manager.next() == ("or1/acme/a/up/evt", b"event", False)
    # A queue for an absent session, and message expiry.
    manager.close()
    first.publish("or1/acme/a/up/evt", b"while away")
    first.publish("or1/acme/a/up/evt", b"stale", expiry_s=1)
    time.sleep(2.2)  # Mosquitto counts in whole seconds
    manager = Client(broker, "manager")
    assert manager.resumed
    assert manager.next()[1] == b"while away"
    # The will, after its delay; then what waits for the device, and the retained document for a fresh client.
    first.cut()
    assert manager.next() == ("or1/acme/a/up/presence", b"gone", False)
    manager.publish("or1/acme/a/dn/blk/x", b"block")
    first = Client(broker, "acme-a", user="acme/a", password="secret")
    assert first.resumed
    assert first.next()[1] == b"block"
    fresh = Client(broker, "fresh")
    fresh.subscribe("or1/acme/a/dn/desired")
    assert fresh.next() == ("or1/acme/a/dn/desired", b"document", True)
    for client in (manager, first, fresh):
        client.close()
    assert broker.kind == kind


@pytest.mark.system
def test_a_shared_subscription_gives_each_message_to_one(broker: Broker) -> None:
    readers = [Client(broker, "reader-1"), Client(broker, "reader-2")] if broker.kind == "iotcore" else []
    if not readers:  # Mosquitto takes the user name for the client id, and only the manager's may read this
        readers = [Client(broker, "reader")]
    for reader in readers:
        reader.subscribe("$share/group/or1/+/+/up/#")
    writer = readers[0]
    for number in range(20):
        writer.publish("or1/acme/a/up/evt", str(number).encode())
    time.sleep(0.5)
    got = sorted(int(reader.next()[1]) for reader in readers for _ in range(reader.messages.qsize()))
    assert got == list(range(20))
    for reader in readers:
        reader.close()


@pytest.mark.system
def test_no_device_can_take_a_share_of_what_the_manager_reads(
    require_tool: Callable[[str], str], tmp_path: Path
) -> None:
    require_tool("mosquitto")
    broker = start_broker(tmp_path, kind="mosquitto")
    clients = []
    try:
        for name in ("acme/a", "acme/thief"):
            broker.add_device(name, "secret")
        manager = Client(broker, "manager")
        device = Client(broker, "a", user="acme/a", password="secret")
        thief = Client(broker, "thief", user="acme/thief", password="secret")
        clients += [manager, device, thief]
        manager.subscribe(broker.up_filter)
        for share in ("mgr", "manager", "share"):
            thief.subscribe(f"$share/{share}/or1/+/+/up/#")
        for number in range(20):
            device.publish("or1/acme/a/up/evt", str(number).encode())
        assert [int(manager.next()[1]) for _ in range(20)] == list(range(20))
        assert thief.messages.empty()
    finally:
        for client in clients:
            client.close()
        broker.stop()
    again = broker_class("mosquitto")(tmp_path / "broker", broker.host, broker.port)
    assert again.up_filter == broker.up_filter  # the session that the broker keeps is subscribed to it
    assert broker_class("mosquitto")(_made(tmp_path / "other"), broker.host, 1).up_filter != broker.up_filter
    assert (tmp_path / "broker" / "share").stat().st_mode & 0o777 == 0o600


@pytest.mark.system
def test_a_device_that_reads_nothing_takes_only_so_much_memory(
    require_tool: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_tool("mosquitto")
    monkeypatch.setattr("outrider.fleet.broker.mosquitto.MAX_QUEUED_BYTES", 4 * 1024 * 1024)
    broker = start_broker(tmp_path, kind="mosquitto")
    try:
        broker.add_device("acme/a", "secret")
        device, manager = Client(broker, "a", user="acme/a", password="secret"), Client(broker, "manager")
        device.subscribe("or1/acme/a/dn/#")
        device.close()
        for number in range(100):
            manager.publish(f"or1/acme/a/dn/blk/{number}", bytes(128 * 1024))
        device = Client(broker, "a", user="acme/a", password="secret")
        kept = 0
        with contextlib.suppress(queue.Empty):
            while device.messages.get(timeout=2):
                kept += 1
        assert 30 <= kept <= 33
        for client in (device, manager):
            client.close()
    finally:
        broker.stop()


@pytest.mark.system
def test_it_is_restarted_when_killed_and_ends_with_stop(broker: Broker, wait: Wait) -> None:
    pid = broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait(lambda: broker.generation == 1 and broker.pid not in (None, pid))
    wait(lambda: _accepts(broker), what="answers again")
    child = broker.pid
    broker.stop()
    broker.stop()
    assert child is not None
    assert not psutil.pid_exists(child)
    assert broker.pid is None


@pytest.mark.system
def test_a_broker_that_hangs_is_killed_and_restarted(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: Wait
) -> None:
    monkeypatch.setattr(supervise, "CHECK_S", 0.1)
    monkeypatch.setattr("outrider.fleet.broker.connack._TIMEOUT_S", 0.2)
    broker = start_broker(tmp_path, kind=kind)
    try:
        pid = broker.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        wait(lambda: broker.generation == 1 and broker.pid not in (None, pid))
        wait(lambda: _accepts(broker))
    finally:
        broker.stop()


_PARENT = """
import sys, time
from outrider.fleet.broker import start_broker
broker = start_broker(sys.argv[1], kind=sys.argv[2])
print(broker.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.system
def test_no_process_is_left_when_the_parent_is_killed(kind: str, tmp_path: Path, wait: Wait) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path), kind], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
        parent.wait()
        wait(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.system
def test_the_port_is_kept_and_one_in_use_is_refused(kind: Any, tmp_path: Path, free_port: int) -> None:
    broker = start_broker(tmp_path, kind=kind)
    port = broker.port
    broker.stop()
    again = start_broker(tmp_path, kind=kind)
    again.stop()
    assert again.port == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        with pytest.raises(PortInUseError, match=str(free_port)):
            start_broker(tmp_path, free_port, kind)


@pytest.mark.system
@pytest.mark.parametrize("kind", ["mosquitto"], indirect=True)
def test_accounts_are_in_force_at_once_and_last(kind: Any, tmp_path: Path) -> None:
    broker = start_broker(tmp_path, kind=kind)
    broker.add_device("acme/a", "first")
    assert _try(broker, "acme/a", "first") == ACCEPTED
    broker.add_device("acme/a", "second")
    assert _try(broker, "acme/a", "first") != ACCEPTED
    old_manager = broker.manager_password
    broker.stop()
    broker = start_broker(tmp_path, kind=kind)
    try:
        assert _try(broker, "acme/a", "second") == ACCEPTED
        assert _try(broker, broker.manager_username, old_manager) != ACCEPTED
        assert _try(broker, "", "") != ACCEPTED
        broker.remove_device("acme/a")
        assert _try(broker, "acme/a", "second") != ACCEPTED
        with pytest.raises(NotFoundError):
            broker.remove_device("acme/a")
        for name in ("acme/+", "acme/#", "a/b/c", "acme", "acme/x:y", "acme/a\nroot", "/a", "a/"):
            with pytest.raises(BadInputError):
                broker.add_device(name, "x")
        assert (tmp_path / "broker" / "passwords").stat().st_mode & 0o777 == 0o600
    finally:
        broker.stop()


@pytest.mark.system
def test_hashes_are_those_of_mosquitto_passwd(require_tool: Callable[[str], str], tmp_path: Path) -> None:
    tool = require_tool("mosquitto_passwd")
    path = tmp_path / "passwords"
    subprocess.run([tool, "-c", "-b", str(path), "acme/a", "hunter2"], check=True, capture_output=True)
    name, _, theirs = path.read_text().strip().partition(":")
    salt = base64.b64decode(theirs.split("$")[3])
    assert name == "acme/a"
    assert hash_password("hunter2", salt) == theirs


def test_the_password_file_holds_what_was_set(tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    file = PasswordFile(path)
    file.change({"t/a": "x", "t/b": "y"})
    witness = file.witness
    file.change({"t/a": None})
    again = PasswordFile(path)
    assert "t/a" not in again
    assert "t/b" in again
    assert file.witness != witness
    assert [entry.name for entry in tmp_path.iterdir()] == ["passwords"]
    assert check_username("t/a") == "t/a"


def test_iotcore_listens_on_loopback_only(tmp_path: Path) -> None:
    with pytest.raises(BadConfigError, match="no access control"):
        start_broker(tmp_path, kind="iotcore", host="0.0.0.0")


def test_a_kind_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in BROKERS:
        monkeypatch.setattr(broker_class(kind), "available", classmethod(lambda _cls: False))  # type: ignore[arg-type]
    with pytest.raises(BadConfigError, match="no MQTT broker is installed"):
        start_broker(tmp_path)


def test_a_child_that_ends_at_once_is_an_error_with_its_output(tmp_path: Path) -> None:
    supervisor = Supervisor(
        "child", ["/bin/sh", "-c", "echo out of luck; exit 3"], output=tmp_path / "log", ready=lambda: False
    )
    with pytest.raises(UnavailableError, match="out of luck"):
        supervisor.start()
    missing = Supervisor("child", ["/nowhere/at/all"], output=tmp_path / "log2", ready=lambda: False)
    with pytest.raises(UnavailableError, match="ended at once"):
        missing.start()


@pytest.fixture(autouse=True)
def _no_broker_is_left() -> Iterator[None]:
    yield
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if child.is_running() and "iotcore.toml" in " ".join(child.cmdline())]


def _try(broker: Broker, username: str, password: str) -> int | None:
    return connect_reason(broker.host, broker.port, client_id="test", username=username, password=password)


def _accepts(broker: Broker) -> bool:
    return _try(broker, broker.manager_username, broker.manager_password) == ACCEPTED


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
