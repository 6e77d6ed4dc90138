"""A fleet without its HTTP API: database, broker and manager, with simulated devices that are bare MQTT clients."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from sqlalchemy import select

from outrider.fleet.broker import Broker, reachable, start_broker
from outrider.fleet.db import BundleRow, Database, DeploymentRow, DeviceRow, ReleaseRow, RolloutRow
from outrider.fleet.manager import Manager
from outrider.fleet.settings import FleetSettings
from outrider.runtime.api_client.types import RolloutSettings
from outrider.runtime.bundle import (
    ArtifactEntry,
    CandidateRecord,
    Golden,
    Manifest,
    Signature,
    SourceModel,
    TensorSpec,
)
from outrider.runtime.messages import (
    TERMINAL_STATES,
    Address,
    BundleRef,
    Desired,
    Disk,
    Event,
    Presence,
    Reported,
    SlotReport,
    State,
    encode,
)
from outrider.runtime.profile import encode_baseline, learn_baseline
from outrider.runtime.target import Requirements, Target
from outrider.runtime.trust import DESIRED_TYPE, PrivateKey, decode_envelope, generate_key, verify

TENANT = "acme"
HOST = Target(name="host", arch="x86_64", triple="x86_64-linux-gnu", features=("avx2",))
STEPS: tuple[State, ...] = (
    "OFFERED", "ADMITTED", "FETCHING", "VERIFIED", "STAGED", "PROBING", "ARMED", "SOAKING", "COMMITTED",
)  # fmt: skip


def wait_for(condition: Callable[[], Any], timeout_s: float = 90.0, what: str = "") -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    pytest.fail(f"not within {timeout_s} s: {what or condition}")


def make_manifest(
    name: str, version: str, target: str, *, arch: str = "x86_64", features: tuple[str, ...] = ()
) -> Manifest:
    artifact = ArtifactEntry(
        path="artifacts/a/model.so",
        size=1,
        sha256="0" * 64,
        format="native",
        abi=1,
        engine="native",
        package=None,
        triple=None,
        needs=Requirements(arch=arch, features=features),  # type: ignore[arg-type]
        inputs=("features",),
        outputs=("score",),
        candidate="a",
    )
    return Manifest(
        schema=1,
        name=name,
        version=version,
        target=target,
        signature=Signature(
            inputs=(TensorSpec(name="features", dtype="float32", shape=(None, 2)),),
            outputs=(TensorSpec(name="score", dtype="float32", shape=(None,)),),
            predict="score",
        ),
        artifacts=(artifact,),
        candidates=(
            CandidateRecord(
                id="a", backend="native", precision="float32", options={}, outcome="chosen", reason="only one", rank=1
            ),
        ),
        golden=Golden(rows=1, evidence="calibration", inputs={}, outputs={}, raw={}, atol=0.0, rtol=0.0),
        source=SourceModel(framework="xgboost", framework_version="3", sha256="0" * 64, description=""),
        files=(),
        evidence="calibration",
    )


@dataclass
class SimDevice:
    """A device as far as MQTT shows: presence with a will, and a walk through the update of every document.

    `verdict` is the state that its updates end in; `steps` those that it reports before.
    """

    address: Address
    host: str
    port: int
    password: str
    key: PrivateKey
    boot_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    verdict: State = "COMMITTED"
    steps: tuple[State, ...] = STEPS[:-1]
    documents: list[Desired] = field(default_factory=list)
    cleared: int = 0
    received: list[tuple[str, bytes]] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    session: str = ""
    _seq: int = 0
    _done: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.lock = threading.RLock()

    def start(self) -> SimDevice:
        self.client = paho.Client(
            paho.CallbackAPIVersion.VERSION2,  # type: ignore[attr-defined]
            client_id=f"{self.address.tenant}-{self.address.device}",
            protocol=paho.MQTTv5,
        )
        self.client.username_pw_set(f"{self.address.tenant}/{self.address.device}", self.password)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = self._on_connect
        self.client.on_message = self._on_message
        self.client.on_publish = self._on_publish
        self.session = uuid.uuid4().hex
        will = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
        will.WillDelayInterval = 0
        self.client.will_set(self.address.up("presence"), self._presence(online=False), 1, True, will)
        connect = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        connect.SessionExpiryInterval = 3600
        connect.ReceiveMaximum = 8
        self.client.connect(self.host, self.port, keepalive=10, clean_start=False, properties=connect)
        self.client.loop_start()
        return self

    def stop(self) -> None:
        """End without a word: no DISCONNECT, so the broker publishes the will."""
        if self.session:
            self.client._thread_terminate = True
            link = self.client.socket()
            if link is not None:
                with contextlib.suppress(OSError):
                    link.shutdown(socket.SHUT_RDWR)  # wakes paho's thread
            self.client.loop_stop()
            self.client._sock_close()

    def send(self, kind: str, message: msgspec.Struct | bytes, *, retain: bool = False) -> paho.MQTTMessageInfo:
        payload = message if isinstance(message, bytes) else encode(message)
        return self.client.publish(self.address.up(kind), payload, 1, retain)

    def report(self, document: Desired, state: State, reason: str = "") -> Event:
        """Publish one step of the update that a document asks for."""
        with self.lock:
            self._seq += 1
            event = Event(
                v=1,
                boot_id=self.boot_id,
                seq=self._seq,
                at=time.time(),
                slot="main",
                job=document.job,
                attempt=document.attempt,
                from_state=None,
                to_state=state,
                bundle=document.slots["main"].bundle,
                reason=reason,
            )
            self.send("evt", event)
            return event

    def next_seq(self) -> int:
        with self.lock:
            self._seq += 1
            return self._seq

    def publish_reported(self, document: Desired, state: State) -> None:
        wanted = document.slots["main"]
        active = BundleRef(sha256=wanted.bundle, name=wanted.name, version=wanted.version)
        reported = Reported(
            v=1,
            boot_id=self.boot_id,
            seq=self.next_seq(),
            at=time.time(),
            revision=document.rev,
            slots={
                "main": SlotReport(
                    active=active if state == "COMMITTED" else None,
                    state=state,
                    job=document.job,
                    attempt=document.attempt,
                )
            },
            disk=Disk(total=1, free=1),
            runtime="test",
            target=HOST,
        )
        self.send("reported", reported, retain=True)

    def _presence(self, *, online: bool) -> bytes:
        return encode(Presence(v=1, boot_id=self.boot_id, session=self.session, online=online, at=time.time()))

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _props: Any) -> None:
        if reason.is_failure:
            self.refused.append(reason.value)
            return
        client.subscribe(self.address.down("#"), 1)
        client.publish(self.address.up("presence"), self._presence(online=True), 1, True)

    def _on_publish(self, _client: Any, _data: Any, _mid: int, reason: Any, _props: Any) -> None:
        if reason.is_failure:
            self.refused.append(reason.value)

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        self.received.append((message.topic, bytes(message.payload)))
        if message.topic != self.address.down("desired"):
            return
        if not message.payload:
            self.cleared += 1
            return
        payload = verify(decode_envelope(message.payload), DESIRED_TYPE, [self.key.public])
        document = msgspec.json.decode(payload, type=Desired)
        self.documents.append(document)
        if document.slots and (document.job, document.attempt) not in self._done:
            self._done.add((document.job, document.attempt))
            for state in self.steps:
                self.report(document, state)
            if self.verdict in TERMINAL_STATES:
                self.report(document, self.verdict, "" if self.verdict == "COMMITTED" else "golden")
                self.publish_reported(document, self.verdict)


@dataclass
class Fleet:
    """Database, broker and manager, and ways to look at them."""

    folder: Path
    settings: FleetSettings
    database: Database
    broker: Broker
    key: PrivateKey
    manager: Manager
    devices: list[SimDevice] = field(default_factory=list)

    def enrol(self, name: str, *, group: str = "default", target: Target = HOST) -> SimDevice:
        now = time.time()
        with self.database.session() as session:
            session.add(
                DeviceRow(
                    id=name,
                    tenant=TENANT,
                    name=name,
                    group=group,
                    secret_hash=hashlib.sha256(name.encode()).hexdigest(),
                    target=msgspec.to_builtins(target),
                    created=now,
                )
            )
        password = f"secret-{name}"
        self.broker.add_device(f"{TENANT}/{name}", password)
        return self.twin(name, password)

    def twin(self, name: str, password: str | None = None) -> SimDevice:
        """A further machine with the identity of an enrolled device."""
        device = SimDevice(
            address=Address(tenant=TENANT, device=name),
            host=reachable(self.broker.host),
            port=self.broker.port,
            password=password or f"secret-{name}",
            key=self.key,
        )
        self.devices.append(device)
        return device

    def publish(
        self, version: str, *, name: str = "fraud", target: str = "host", data: bytes = b"", arch: str = "x86_64"
    ) -> str:
        """Put a bundle into the registry, past its checks: these tests never open it."""
        data = data or f"{name} {version} {target}".encode()
        sha256 = hashlib.sha256(data).hexdigest()
        place = self.settings.bundles_dir / f"{sha256}.orb"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        rng = np.random.default_rng(7)
        rows = rng.normal(size=(4000, 2)).astype(np.float32)
        baseline = learn_baseline(rows, ("amount", "hour"), None)
        with self.database.session() as session:
            release = session.scalars(select(ReleaseRow).filter_by(name=name, version=version)).first()
            if release is None:
                release = ReleaseRow(name=name, version=version, created=time.time())
                session.add(release)
                session.flush()
            session.add(
                BundleRow(
                    sha256=sha256,
                    size=len(data),
                    name=name,
                    version=version,
                    target=target,
                    manifest=msgspec.to_builtins(make_manifest(name, version, target, arch=arch)),
                    envelope="{}",
                    path=place.name,
                    release=release.number,
                    baseline=encode_baseline(baseline),
                    created=time.time(),
                )
            )
        return sha256

    def rollout(
        self, version: str, *, canary: int = 1, group: str = "default", name: str = "fraud", **more: Any
    ) -> int:
        with self.database.session() as session:
            release = session.scalars(select(ReleaseRow).filter_by(name=name, version=version)).one()
            row = RolloutRow(
                release=release.number,
                group=group,
                canary=canary,
                state="PENDING",
                settings=msgspec.to_builtins(RolloutSettings(**more)),
                seed="seed",
                created=time.time(),
            )
            session.add(row)
            session.flush()
            identifier = row.id
        self.manager.wake()
        return identifier

    def state(self, rollout: int) -> str:
        with self.database.read() as session:
            return session.get_one(RolloutRow, rollout).state

    def deployments(self, rollout: int) -> dict[str, DeploymentRow]:
        with self.database.read() as session:
            rows = session.scalars(select(DeploymentRow).filter_by(rollout=rollout)).all()
            return {row.device: row for row in rows}

    def device(self, name: str) -> DeviceRow:
        with self.database.read() as session:
            return session.get_one(DeviceRow, name)

    def restart_manager(self) -> None:
        self.manager.stop()
        self.manager = Manager(self.database, self.broker, self.key, self.settings)
        self.manager.start()


@pytest.fixture
def wait() -> Callable[..., Any]:
    return wait_for


@pytest.fixture
def manifest() -> Callable[..., Manifest]:
    return make_manifest


@pytest.fixture(params=["mosquitto", "iotcore"])
def kind(request: pytest.FixtureRequest, require_tool: Callable[[str], str]) -> str:
    if request.param == "mosquitto":
        require_tool("mosquitto")
    return str(request.param)


@pytest.fixture
def broker(kind: str, tmp_path: Path) -> Iterator[Broker]:
    running = start_broker(tmp_path, kind=kind)  # type: ignore[arg-type]
    yield running
    running.stop()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'fleet.db'}")
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def fleet(tmp_path: Path, broker: Broker, database: Database) -> Iterator[Fleet]:
    settings = FleetSettings(data_dir=tmp_path, tenant=TENANT, tick_s=0.2)
    key = generate_key()
    manager = Manager(database, broker, key, settings)
    fleet = Fleet(tmp_path, settings, database, broker, key, manager)
    manager.start()
    yield fleet
    for device in fleet.devices:
        device.stop()
    fleet.manager.stop()
