"""The link against real brokers: presence, delivery once acknowledged, and nothing lost when the broker dies."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from outrider.runtime.errors import BadSignatureError, NotFoundError, StorageFullError, UnavailableError
from outrider.runtime.identity import Identity
from outrider.runtime.link import Handlers, Link, MqttSettings
from outrider.runtime.messages import (
    Address,
    Block,
    BlockRequest,
    Disk,
    Presence,
    Reply,
    Reported,
    decode,
    encode,
    parse_topic,
)
from outrider.runtime.store.database import Database
from outrider.runtime.store.outbox import Outbox
from outrider.runtime.target import Target

pytestmark = pytest.mark.system

QUICK = MqttSettings(backoff_s=0.05, backoff_max_s=0.4, keepalive_s=5, will_delay_s=0, stable_s=0.5)


def wait_for(what: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("did not happen in time")


class Manager:
    """The fleet's end: sees all `up/#`, sends `dn/*`; reconnects by itself."""

    def __init__(self, port: int) -> None:
        self.messages: queue.SimpleQueue[tuple[str, bytes, bool]] = queue.SimpleQueue()
        self.seen: list[tuple[str, bytes]] = []
        self.ready = threading.Event()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id="manager", protocol=paho.MQTTv5)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda client, *_: client.subscribe("or1/+/+/up/#", qos=1)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = self._take
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        self.client.connect_async("127.0.0.1", port, clean_start=False, properties=properties)
        self.client.loop_start()

    def _take(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        self.seen.append((parse_topic(message.topic)[2], bytes(message.payload)))

    def of(self, kind: str) -> list[bytes]:
        return [payload for found, payload in list(self.seen) if found == kind]

    def presences(self) -> list[Presence]:
        return [decode(payload, Presence) for payload in self.of("presence")]

    def send(self, topic: str, payload: bytes, *, retain: bool = False, correlation: bytes | None = None) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        if correlation is not None:
            properties.CorrelationData = correlation
            properties.ResponseTopic = "or1/other/victim/dn/desired"
        self.client.publish(topic, payload, qos=1, retain=retain, properties=properties).wait_for_publish(20)

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@dataclass
class Device:
    """What the link's handlers received; they can be told to fail."""

    desired: list[bytes] = field(default_factory=list)
    blocks: list[tuple[str, int]] = field(default_factory=list)
    refuse: list[Exception] = field(default_factory=list)

    def handlers(self) -> Handlers:
        return Handlers(
            desired=self._desired,
            block=lambda sha, block: self.blocks.append((sha, block.index)),
            command=self._command,
            reported=self._reported,
        )

    def _desired(self, payload: bytes) -> None:
        if self.refuse:
            raise self.refuse.pop(0)
        self.desired.append(payload)

    def _command(self, name: str, payload: bytes) -> dict[str, str]:
        if name != "echo":
            raise NotFoundError(f"there is no command {name!r}")
        return {"echo": payload.decode()}

    def _reported(self) -> Reported:
        return Reported(
            v=1,
            boot_id="boot",
            seq=1,
            at=0.0,
            revision=len(self.desired),
            slots={},
            disk=Disk(total=1, free=1),
            runtime="test",
            target=Target(name="host", arch="x86_64", triple="x86_64-linux-gnu"),
        )


@dataclass
class Bench:
    """A broker with a manager, and links made on demand; all stopped at the end."""

    broker: Any
    identity: Identity
    folder: Path
    managers: list[Manager] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    databases: list[Database] = field(default_factory=list)

    @property
    def address(self) -> Address:
        return self.identity.address

    def manager(self) -> Manager:
        manager = Manager(self.broker.port)
        self.managers.append(manager)
        assert manager.ready.wait(20)
        return manager

    def outbox(self) -> Outbox:
        database = Database(self.folder / "device.db")
        self.databases.append(database)
        return Outbox(database)

    def link(self, device: Device, outbox: Outbox, *, boot_id: str = "boot") -> Link:
        link = Link(self.identity, outbox, boot_id=boot_id, settings=QUICK)
        outbox.listen(link.wake)
        self.links.append(link)
        link.start(device.handlers())
        return link


@pytest.fixture
def bench(broker: Any, identity: Identity, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(broker, identity, tmp_path)
    yield made
    for link in made.links:
        link.stop(goodbye_s=0.5)
    for manager in made.managers:
        manager.stop()
    for database in made.databases:
        database.close()


def test_presence_desired_commands_and_blocks(bench: Bench) -> None:
    bench.broker.start()
    manager, device, outbox = bench.manager(), Device(), bench.outbox()
    manager.send(bench.address.down("desired"), b"envelope-1", retain=True)
    link = bench.link(device, outbox)
    wait_for(lambda: device.desired == [b"envelope-1"])
    presence = wait_for(manager.presences)[0]
    assert presence.online
    assert presence.boot_id == "boot"
    wait_for(lambda: manager.of("reported"))

    manager.send(bench.address.down("desired"), b"envelope-2", retain=True)
    wait_for(lambda: device.desired[-1] == b"envelope-2")
    sha = "cd" * 32
    link.request(BlockRequest(v=1, sha256=sha, index=0, n=1))
    request = decode(wait_for(lambda: manager.of("blk"))[0], BlockRequest)
    assert request.sha256 == sha
    manager.send(bench.address.down(f"blk/{sha}"), encode(Block(v=1, index=0, data=b"x" * 131072)))
    wait_for(lambda: device.blocks == [(sha, 0)])

    for name in ("echo", "reboot"):
        manager.send(bench.address.down(f"cmd/{name}"), b"hello", correlation=name.encode())
    replies = [
        decode(payload, Reply) for payload in wait_for(lambda: len(manager.of("rsp")) == 2 and manager.of("rsp"))
    ]
    assert [(reply.id, reply.ok) for reply in replies] == [("echo", True), ("reboot", False)]
    assert replies[0].body == {"echo": "hello"}

    link.stop()
    assert wait_for(lambda: not manager.presences()[-1].online)
    assert not link.online


def test_garbage_is_acknowledged_and_ignored(bench: Bench) -> None:
    bench.broker.start()
    manager, device = bench.manager(), Device()
    bench.link(device, bench.outbox())
    wait_for(manager.presences)
    for kind in ("nonsense", "blk/zz", "cmd/echo", "desired"):
        for _ in range(4):  # more than the receive maximum in all: each must be acknowledged
            manager.send(bench.address.down(kind), b"" if kind == "desired" else b"\xff\x00")
    manager.send(bench.address.down("desired"), b"after")
    wait_for(lambda: device.desired == [b"after"])


def test_a_refused_document_is_done_with_and_a_full_disk_is_not(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outrider.runtime.link._RETRY_S", 0.2)
    monkeypatch.setattr("outrider.runtime.link._POLL_S", 0.1)
    bench.broker.start()
    manager = bench.manager()
    device = Device(refuse=[BadSignatureError(), StorageFullError(), StorageFullError()])
    bench.link(device, bench.outbox())
    wait_for(manager.presences)
    manager.send(bench.address.down("desired"), b"badly signed")
    manager.send(bench.address.down("desired"), b"well signed")
    wait_for(lambda: device.desired == [b"well signed"])


def test_the_broker_is_away_at_start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outrider.runtime.link._STRANGE_BROKER_S", 0.5)
    monkeypatch.setattr("outrider.runtime.link._RETRY_S", 0.5)
    monkeypatch.setattr("outrider.runtime.link._POLL_S", 0.2)
    device, outbox = Device(), bench.outbox()
    outbox.put("evt", b"while away")
    link = bench.link(device, outbox)
    with pytest.raises(UnavailableError):
        link.request(BlockRequest(v=1, sha256="cd" * 32, index=0, n=1))
    time.sleep(0.5)
    assert not link.online
    bench.broker.start()
    manager = bench.manager()
    wait_for(lambda: link.online)
    wait_for(lambda: outbox.pending() == [])
    outbox.put("evt", b"later")
    wait_for(lambda: b"later" in manager.of("evt"))


def test_nothing_in_the_outbox_is_lost_when_the_broker_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are put all the while, and the broker dies three times, once or twice before the manager is back.

    What a broker had acknowledged and not yet passed on when it died is gone: never more than the window.
    """
    monkeypatch.setattr("outrider.runtime.link._RETRY_S", 0.1)
    bench.broker.start()
    manager, device, outbox = bench.manager(), Device(), bench.outbox()
    manager.send(bench.address.down("desired"), b"envelope", retain=True)
    bench.link(device, outbox)
    wait_for(manager.presences)
    sent: list[bytes] = []
    stop = threading.Event()

    def produce() -> None:
        while not stop.is_set():
            sent.append(f"event {len(sent)}".encode())
            outbox.put("evt", sent[-1])
            time.sleep(0.005)

    producer = threading.Thread(target=produce)
    producer.start()
    for _ in range(3):
        time.sleep(0.4)
        bench.broker.kill()
        manager.ready.clear()
        time.sleep(0.4)
        bench.broker.start()
        assert manager.ready.wait(20)
        manager.send(bench.address.down("desired"), b"envelope", retain=True)
    stop.set()
    producer.join()
    wait_for(lambda: outbox.pending() == [], 60)
    wait_for(lambda: sent[-1] in manager.of("evt"))
    missing = set(sent) - set(manager.of("evt"))
    assert len(sent) > 100
    assert len(missing) <= 3 * 8, f"{len(missing)} of {len(sent)}"


def test_the_will_tells_of_a_device_that_vanished(bench: Bench) -> None:
    bench.broker.start()
    manager, device = bench.manager(), Device()
    link = bench.link(device, bench.outbox())
    session = wait_for(manager.presences)[0].session
    vanish(link)
    gone = wait_for(lambda: [p for p in manager.presences() if not p.online])
    assert gone[0].session == session


def test_two_devices_with_one_identity_show_two_boot_ids(bench: Bench) -> None:
    bench.broker.start()
    manager = bench.manager()
    bench.link(Device(), bench.outbox(), boot_id="first")
    wait_for(manager.presences)
    other = Link(bench.identity, _Empty(), boot_id="second", settings=QUICK)
    bench.links.append(other)
    other.start(Device().handlers())
    wait_for(lambda: len([p for p in manager.presences() if p.online]) >= 4)
    online = [p.boot_id for p in manager.presences() if p.online]
    assert {"first", "second"} == set(online)
    assert online.count("first") >= 2


class _Empty:
    """An outbox with nothing in it."""

    def pending(self, limit: int = 64) -> list[Any]:
        return []

    def done(self, *ids: int) -> None:
        raise AssertionError


def vanish(link: Link) -> None:
    """Cut the connection as a power cut would: no DISCONNECT, no way back."""
    session = link._mqtt
    session._stopping.set()
    sock = session._client.socket()
    assert sock is not None
    sock.shutdown(2)  # type: ignore[union-attr]


def test_messages_are_published_with_their_expiry(bench: Bench) -> None:
    bench.broker.start()
    manager, outbox = bench.manager(), bench.outbox()
    manager.send(bench.address.down("desired"), b"envelope", retain=True)
    expiries: list[int | None] = []
    manager.client.on_message = lambda _c, _d, m: expiries.append(getattr(m.properties, "MessageExpiryInterval", None))
    bench.link(Device(), outbox)
    wait_for(lambda: len(expiries) == 2)  # presence and reported
    outbox.put("stat", msgspec.msgpack.encode({}))
    wait_for(lambda: len(expiries) == 3)
    assert expiries[:2] == [None, None]
    assert expiries[2] is not None
    assert 7 * 86_400 - 60 < expiries[2] <= 7 * 86_400
