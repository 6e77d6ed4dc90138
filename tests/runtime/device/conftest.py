"""A small real bundle, brokers that can be killed, and requests over a raw socket."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from outrider.runtime.bundle import (
    ArtifactEntry,
    CandidateRecord,
    Golden,
    Manifest,
    Signature,
    SourceModel,
    TensorSpec,
    encode_npy,
    file_entry,
    write_bundle,
)
from outrider.runtime.features.plan import FeaturePlan, FeatureStep, RawColumn
from outrider.runtime.identity import Identity
from outrider.runtime.profile import encode_baseline, learn_baseline
from outrider.runtime.target import Requirements
from outrider.runtime.trust import PrivateKey, TrustStore, generate_key, sign_bundle

# score = clamp(x0 / divisor), with an artifact error for a row whose second feature is negative.
SOURCE = """
#include <stddef.h>
#include <stdint.h>
#define API __attribute__((visibility("default")))
API uint32_t outrider_abi(void) { return 1; }
API size_t outrider_workspace(int64_t batch) { (void)batch; return 0; }
API int32_t outrider_run(const void *const *inputs, void *const *outputs, int64_t batch, void *workspace) {
    const float *x = inputs[0];
    float *score = outputs[0];
    (void)workspace;
    for (int64_t i = 0; i < batch; i++) {
        if (x[2 * i + 1] < 0.0f) return 7;
        float s = x[2 * i] / DIVISOR;
        score[i] = s < 0.0f ? 0.0f : s > 1.0f ? 1.0f : s;
    }
    return 0;
}
"""


def _build(folder: Path, divisor: float) -> bytes:
    source, library = folder / f"model{divisor:g}.c", folder / f"model{divisor:g}.so"
    source.write_text(SOURCE.replace("DIVISOR", f"{divisor:.1f}f"))
    flags = ["-nostdlib", "-ffreestanding", "-fPIC", "-shared", "-O2", "-s", "-ffp-contract=off"]
    command = [sys.executable, "-m", "ziglang", "cc", *flags, "-o", str(library), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    return library.read_bytes()


@dataclass(frozen=True)
class Made:
    """A signed bundle on disk."""

    path: Path
    sha256: str
    version: str


@dataclass
class Maker:
    """Makes signed bundles: `score = clamp(x0 / divisor)` over two features."""

    folder: Path
    key: PrivateKey
    libraries: dict[float, bytes] = field(default_factory=dict)

    def trust(self) -> TrustStore:
        return TrustStore({purpose: [self.key.public] for purpose in TrustStore.FOLDERS.values()})

    def make(self, version: str = "1", *, divisor: float = 10.0, raw: bool = False) -> Made:
        if divisor not in self.libraries:
            self.libraries[divisor] = _build(self.folder, divisor)
        path = self.folder / f"tiny-{version}-{divisor:g}-{raw}.orb"
        manifest, files = _manifest(version, self.libraries[divisor], divisor, raw)
        sha256 = write_bundle(path, manifest, files)
        sign_bundle(path, name="tiny", version=version, target="host", key=self.key)
        return Made(path, sha256, version)


def _manifest(version: str, library: bytes, divisor: float, raw: bool) -> tuple[Manifest, dict[str, bytes]]:
    x = np.stack([np.linspace(0, 10, 64), np.linspace(0, 1, 64)], axis=1).astype(np.float32)
    score = np.clip(x[:, 0] / np.float32(divisor), 0, 1).astype(np.float32)
    artifact = "artifacts/native/model.so"
    files = {
        artifact: library,
        "golden/inputs/features.npy": encode_npy(x[:8]),
        "golden/outputs/score.npy": encode_npy(score[:8]),
        "baseline.msgpack": encode_baseline(learn_baseline(x, ["amount", "share"], score)),
    }
    plan = FeaturePlan(
        columns=(
            RawColumn(name="amt", kind="number"),
            RawColumn(name="part", kind="number"),
            RawColumn(name="at", kind="time"),
            RawColumn(name="shop", kind="string"),
        ),
        steps=(
            FeatureStep(op="log1p", inputs=("amt",), output="amount"),
            FeatureStep(op="log1p", inputs=("part",), output="share"),
        ),
        outputs=("amount", "share"),
    )
    manifest = Manifest(
        schema=1,
        name="tiny",
        version=version,
        target="host",
        signature=Signature(
            inputs=(TensorSpec(name="features", dtype="float32", shape=(None, 2)),),
            outputs=(
                TensorSpec(name="score", dtype="float32", shape=(None,)),
                TensorSpec(name="label", dtype="string", shape=(None,)),
            ),
            predict="score",
            feature_names=("amount", "share"),
            class_labels=("good", "bad"),
        ),
        artifacts=(
            ArtifactEntry(
                path=artifact,
                size=len(library),
                sha256=hashlib.sha256(library).hexdigest(),
                format="native",
                abi=1,
                engine="native",
                package=None,
                triple=None,
                needs=Requirements(),
                inputs=("features",),
                outputs=("score",),
                candidate="native",
            ),
        ),
        candidates=(
            CandidateRecord(
                id="native", backend="test", precision="fp32", options={}, outcome="chosen", reason="only", rank=1
            ),
        ),
        golden=Golden(
            rows=8,
            evidence="calibration",
            inputs={"features": "golden/inputs/features.npy"},
            outputs={"score": "golden/outputs/score.npy"},
            raw={},
            atol=1e-6,
            rtol=0.0,
        ),
        source=SourceModel(framework="test", framework_version="0", sha256="0" * 64, description="a ramp"),
        files=tuple(file_entry(path, data) for path, data in files.items() if path != artifact),
        evidence="calibration",
        features=plan if raw else None,
        baseline="baseline.msgpack",
    )
    return manifest, files


@pytest.fixture(scope="session")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Bundles built here, with a key that `identity` trusts."""
    return Maker(tmp_path_factory.mktemp("bundles"), generate_key())


@pytest.fixture
def identity(maker: Maker, free_port: int) -> Identity:
    """An enrolled device whose broker is (perhaps) on `free_port`."""
    pem = maker.key.public.pem()
    return Identity(
        tenant="acme",
        device="till-7",
        name="till-7",
        secret="s3cret",
        api_url="http://127.0.0.1:9",
        mqtt_host="127.0.0.1",
        mqtt_port=free_port,
        mqtt_username="acme/till-7",
        mqtt_password="pw",
        trust={"desired": (pem,), "bundle": (pem,)},
    )


# HTTP over a raw socket ------------------------------------------------------------------------------------------


@dataclass
class Client:
    """One connection that speaks just enough HTTP, and whatever else a test sends."""

    sock: socket.socket
    buffer: bytes = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        self.send(f"{method} {path} HTTP/1.1\r\nHost: device\r\n{length}\r\n".encode() + (body or b""))
        return self.answer()

    def answer(self) -> tuple[int, bytes]:
        while b"\r\n\r\n" not in self.buffer:
            self._fill()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length"))
        while len(self.buffer) < length:
            self._fill()
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return int(lines[0].split(" ")[1]), body

    def closed(self) -> bool:
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True

    def _fill(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("closed")
        self.buffer += data


@pytest.fixture
def connect() -> Iterator[Callable[[tuple[str, int] | Path], Client]]:
    """Connects to a TCP address or a Unix socket; everything is closed at the end."""
    opened: list[socket.socket] = []

    def open_one(address: tuple[str, int] | Path) -> Client:
        is_path = isinstance(address, Path)
        sock = socket.socket(socket.AF_UNIX if is_path else socket.AF_INET, socket.SOCK_STREAM)
        opened.append(sock)
        sock.settimeout(20)
        sock.connect(str(address) if is_path else address)
        return Client(sock)

    yield open_one
    for sock in opened:
        sock.close()


# Brokers ---------------------------------------------------------------------------------------------------------


@dataclass
class BrokerProcess:
    """A broker on 127.0.0.1 that keeps its state in `folder` (Mosquitto) or nowhere (iotcore)."""

    command: list[str]
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                probe.settimeout(0.2)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError("the broker did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
            self.process = None


_MOSQUITTO = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence true
persistence_location {folder}/
autosave_interval 1
max_queued_messages 100000
"""

_IOTCORE = """\
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 10
[v5.1]
name = "test"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = 1048576
max_inflight_count = 100
dynamic_filters = true
"""


@pytest.fixture(params=["mosquitto", "iotcore"])
def broker(
    request: pytest.FixtureRequest, tmp_path: Path, free_port: int, require_tool: Callable[[str], str]
) -> Iterator[BrokerProcess]:
    """Each of the two brokers, not started yet, on `free_port`."""
    folder = tmp_path / "broker"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)  # Mosquitto gives up root for a user of its own
    tmp_path.chmod(0o755)
    config = folder / ("broker.conf" if request.param == "mosquitto" else "broker.toml")
    if request.param == "mosquitto":
        config.write_text(_MOSQUITTO.format(port=free_port, folder=folder))
        user = ["user root\n"] if os.geteuid() == 0 else []
        config.write_text("".join(user) + config.read_text())
        command = [require_tool("mosquitto"), "-c", str(config)]
    else:
        if importlib.util.find_spec("iotcore") is None:
            pytest.skip("iotcore is not installed")
        config.write_text(_IOTCORE.format(port=free_port))
        command = [
            sys.executable,
            "-c",
            "import sys; from iotcore import Broker; Broker(config_path=sys.argv[1]).run_forever()",
        ]
        command.append(str(config))
    process = BrokerProcess(command, free_port)
    yield process
    process.kill()
