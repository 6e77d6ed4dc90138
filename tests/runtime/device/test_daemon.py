"""outriderd as a process: it serves from disk with no fleet at all, and takes an update over a real broker."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as paho
import psutil
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from outrider.runtime.identity import Identity, save_identity
from outrider.runtime.messages import (
    BLOCK_BYTES,
    ArtifactNeed,
    Block,
    BlockRequest,
    Desired,
    Event,
    Health,
    Predictions,
    SlotDesired,
    Stat,
    decode,
    encode,
    parse_topic,
)
from outrider.runtime.store import Store
from outrider.runtime.target import Requirements
from outrider.runtime.trust import DESIRED_TYPE, encode_envelope, sign

pytestmark = pytest.mark.system


@dataclass
class Site:
    """A device's folder with its configuration, and the daemons started on it."""

    folder: Path
    port: int
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def socket(self) -> Path:
        return self.state / "outrider.sock"

    def configure(self, **settings: Any) -> Path:
        values: dict[str, Any] = {
            "state_dir": "state",
            "port": self.port,
            "window_s": 3600,
            "backoff_s": 0.05,
            "backoff_max_s": 0.5,
            "log_format": "json",
            **settings,
        }
        path = self.folder / "device.toml"
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
        return path

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "outrider.runtime.daemon", "--config", str(self.folder / "device.toml")]
        process = subprocess.Popen(
            [*command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self.processes.append(process)
        return process

    def ready(self, process: subprocess.Popen[str]) -> None:
        """Wait until it serves."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(5)
                if probe.connect_ex(str(self.socket)) == 0:
                    probe.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
                    if b" 200 " in probe.recv(100):
                        return
            time.sleep(0.05)
        raise AssertionError(f"outriderd did not start: {process.communicate(timeout=1)}")

    def stop(self, process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str]:
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        return process.returncode, err

    def install(self, made: Any) -> None:
        """Put a bundle on disk as an update would have."""
        store = Store(self.state)
        store.slots.part_path(made.sha256).write_bytes(made.path.read_bytes())
        store.slots.stage(made.sha256, made.path.with_name(made.path.name + ".dsse").read_bytes())
        store.slots.swap("main", made.sha256, None)
        store.close()


@pytest.fixture
def site(tmp_path: Path, identity: Identity) -> Iterator[Site]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = Site(tmp_path, port)
    made.configure()
    save_identity(identity, made.state)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=10)


def infer(client: Any, rows: int = 1, **extra: Any) -> tuple[int, Any]:
    tensor = {"name": "features", "shape": [rows, 2], "datatype": "FP32", "data": [5.0, 0.5] * rows}
    status, answer = client.request("POST", "/v2/models/main/infer", msgspec.json.encode({"inputs": [tensor], **extra}))
    return status, msgspec.json.decode(answer)


def log_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_serves_from_disk_without_a_fleet(site: Site, maker: Any, connect: Callable[[Any], Any]) -> None:
    made = maker.make("1")
    site.install(made)
    process = site.start()
    site.ready(process)
    for address in (("127.0.0.1", site.port), site.socket):
        status, answer = infer(connect(address), 3, id="order")
        assert status == 200
        assert answer["outputs"][0]["data"] == [0.5, 0.5, 0.5]
    assert connect(site.socket).request("GET", "/v2/health/ready")[0] == 200
    code, err = site.stop(process)
    assert code == 0
    lines = log_lines(err)
    assert any(line["message"] == "slot main serves tiny 1" for line in lines)
    assert any("not connected" in line["message"] for line in lines)
    assert lines[-1]["message"] == "stopped"
    assert len({line["boot_id"] for line in lines if "boot_id" in line}) == 1
    assert not site.socket.exists()

    store = Store(site.state)
    try:
        waiting = store.outbox.pending(100)
        (stat,) = [decode(m.payload, Stat) for m in waiting if m.kind == "stat"]
        assert (stat.rows, stat.bundle) == (6, made.sha256)
        ids = [p.id for m in waiting if m.kind == "pred" for p in decode(m.payload, Predictions).predictions]
        assert sorted(ids) == sorted(["order/0", "order/1", "order/2"] * 2)
        assert len({(m.kind, msgspec.msgpack.decode(m.payload)["seq"]) for m in waiting}) == len(waiting)
    finally:
        store.close()


def test_an_empty_device_is_alive_and_not_ready(site: Site, connect: Callable[[Any], Any]) -> None:
    process = site.start()
    site.ready(process)
    client = connect(site.socket)
    assert client.request("GET", "/v2/health/ready")[0] == 503
    assert infer(client)[0] == 404
    assert site.stop(process, signal.SIGINT)[0] == 0


def test_a_killed_daemon_serves_again(site: Site, maker: Any, connect: Callable[[Any], Any]) -> None:
    site.install(maker.make("1"))
    process = site.start()
    site.ready(process)
    process.kill()
    process.wait(10)
    assert site.socket.exists()
    again = site.start()
    site.ready(again)
    assert infer(connect(site.socket))[0] == 200
    assert site.stop(again)[0] == 0


def test_a_port_in_use_is_a_clear_refusal_and_no_boot(site: Site) -> None:
    site.configure(log_format="text")
    with socket.socket() as other:
        other.bind(("127.0.0.1", site.port))
        other.listen()
        process = site.start()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"error: 127.0.0.1:{site.port} is already in use" in err
    assert "Traceback" not in err
    store = Store(site.state)
    assert store.boots() == 0
    store.close()


def test_a_second_daemon_on_one_folder_is_refused(site: Site) -> None:
    first = site.start()
    site.ready(first)
    second = site.start()
    _, err = second.communicate(timeout=30)
    assert second.returncode == 1
    assert "in use by another process" in err
    assert site.stop(first)[0] == 0


def test_check_and_bad_configurations(site: Site) -> None:
    checked = site.start("--check")
    out, _ = checked.communicate(timeout=30)
    assert checked.returncode == 0
    assert "acme/till-7" in out
    site.configure(speed=11)
    refused = site.start()
    _, err = refused.communicate(timeout=30)
    assert refused.returncode == 1
    assert "unknown key 'speed'" in err
    site.configure()
    (site.state / "identity.json").unlink()
    unenrolled = site.start()
    _, err = unenrolled.communicate(timeout=30)
    assert unenrolled.returncode == 1
    assert "no token" in err


def test_sigterm_ends_the_wait_for_the_fleet(site: Site, free_port: int) -> None:
    (site.state / "identity.json").unlink()
    site.configure(token="t", fleet_url=f"http://127.0.0.1:{free_port}", backoff_s=30, backoff_max_s=30)
    process = site.start()
    assert process.stderr is not None
    assert "the fleet is away" in process.stderr.readline()
    assert site.stop(process)[0] == 0


def test_systemd_is_notified(site: Site) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(20)
        listener.bind(str(site.folder / "notify"))
        process = site.start(NOTIFY_SOCKET=str(site.folder / "notify"), WATCHDOG_USEC="400000")
        heard = [listener.recv(100) for _ in range(3)]
        site.stop(process)
        while heard[-1] != b"STOPPING=1":
            heard.append(listener.recv(100))
    assert heard[:3] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]


def test_memory_and_idle_processor_time(site: Site, maker: Any, connect: Callable[[Any], Any]) -> None:
    site.install(maker.make("1"))
    process = site.start()
    site.ready(process)
    client = connect(site.socket)
    for _ in range(50):
        infer(client)
    usage = psutil.Process(process.pid)
    before = sum(usage.cpu_times()[:2])
    time.sleep(1.5)
    spent = sum(usage.cpu_times()[:2]) - before
    resident = usage.memory_info().rss / 2**20
    assert resident < 90, f"{resident:.0f} MiB"
    assert spent <= 0.1, f"{spent:.2f} s of processor time in 1.5 s of idleness"


# An update over a real broker --------------------------------------------------------------------------------------


class Fleet:
    """Just enough of a fleet: publishes a desired document, answers block requests, collects what comes up."""

    def __init__(self, port: int, identity: Identity, bundle: bytes) -> None:
        self.identity = identity
        self.bundle = bundle
        self.events: list[Event] = []
        self.stats: list[Stat] = []
        self.ready = threading.Event()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id="fleet", protocol=paho.MQTTv5)
        self.client.on_connect = lambda client, *_: client.subscribe("or1/+/+/up/#", qos=1)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = self._take
        self.client.connect_async("127.0.0.1", port)
        self.client.loop_start()
        assert self.ready.wait(20)

    def want(self, desired: Desired, key: Any) -> None:
        envelope = encode_envelope(sign(encode(desired), DESIRED_TYPE, [key]))
        topic = self.identity.address.down("desired")
        self.client.publish(topic, envelope, qos=1, retain=True).wait_for_publish(20)

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def _take(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        kind = parse_topic(message.topic)[2]
        if kind == "evt":
            self.events.append(decode(message.payload, Event))
        elif kind == "stat":
            self.stats.append(decode(message.payload, Stat))
        elif kind == "blk":
            request = decode(message.payload, BlockRequest)
            for index in range(request.index, request.index + request.n):
                data = self.bundle[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
                topic = self.identity.address.down(f"blk/{request.sha256}")
                self.client.publish(topic, encode(Block(v=1, index=index, data=data)), qos=1)


def desired(made: Any, identity: Identity, rev: int) -> Desired:
    return Desired(
        v=1,
        tenant=identity.tenant,
        device=identity.device,
        rev=rev,
        issued=time.time(),
        not_after=time.time() + 3600,
        job="7",
        attempt=1,
        rollback_floor=0,
        slots={
            "main": SlotDesired(
                bundle=made.sha256,
                size=made.path.stat().st_size,
                name="tiny",
                version=made.version,
                release=rev,
                target="host",
                signature=made.path.with_name(made.path.name + ".dsse").read_text(),
                artifacts=(ArtifactNeed(format="native", abi=1, package=None, needs=Requirements()),),
                health=Health(soak_s=0.2),
            )
        },
    )


def test_takes_an_update_over_mqtt_while_serving(
    site: Site, broker: Any, identity: Identity, maker: Any, connect: Callable[[Any], Any]
) -> None:
    first, second = maker.make("1"), maker.make("2", divisor=20.0)
    site.install(first)
    site.configure(transport=["mqtt"])
    broker.start()
    process = site.start()
    site.ready(process)
    fleet = Fleet(broker.port, identity, second.path.read_bytes())
    try:
        client, answers, deadline = connect(site.socket), [], time.monotonic() + 60
        fleet.want(desired(second, identity, 1), maker.key)
        while time.monotonic() < deadline and not any(e.to_state == "COMMITTED" for e in fleet.events):
            status, answer = infer(client)
            assert status == 200
            answers.append((answer["model_version"], answer["outputs"][0]["data"][0]))
            time.sleep(0.01)
        assert site.stop(process)[0] == 0
        while time.monotonic() < deadline and {s.bundle for s in fleet.stats} != {first.sha256, second.sha256}:
            time.sleep(0.05)
    finally:
        fleet.stop()
    assert [e.to_state for e in fleet.events][-1] == "COMMITTED"
    assert set(answers) == {("1", 0.5), ("2", 0.25)}
    assert answers == sorted(answers)
    assert sum(stat.rows for stat in fleet.stats) == len(answers)
