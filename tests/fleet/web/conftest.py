"""A fleet's API on a real port, with fakes in place of broker and manager, and small real bundles."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
from sqlalchemy import text

from outrider.fleet import service
from outrider.fleet.app import create_app
from outrider.fleet.auth import create_key
from outrider.fleet.db import Database
from outrider.fleet.registry import Registry
from outrider.fleet.server import ApiServer, bind
from outrider.fleet.settings import FleetSettings
from outrider.fleet.state import FleetState
from outrider.runtime.api_client import BundleInfo, DeviceInfo, Enrolment, EnrolRequest, FleetClient
from outrider.runtime.bundle import (
    ArtifactEntry,
    CandidateRecord,
    GoalRecord,
    Golden,
    Manifest,
    Signature,
    SourceModel,
    TensorSpec,
    encode_npy,
    file_entry,
    write_bundle,
)
from outrider.runtime.errors import UnavailableError
from outrider.runtime.messages import Predictions
from outrider.runtime.target import Requirements, Target
from outrider.runtime.trust import PrivateKey, encode_envelope, generate_key, sign_bundle

HOST = Target(name="host", arch="x86_64", triple="x86_64-linux-gnu")


@dataclass
class FakeBroker:
    """Remembers who may connect."""

    host: str = "127.0.0.1"
    port: int = 1883
    kind: str = "fake"
    devices: dict[str, str] = field(default_factory=dict)
    away: bool = False

    def add_device(self, username: str, password: str) -> None:
        if self.away:
            raise UnavailableError("the broker does not answer")
        self.devices[username] = password

    def remove_device(self, username: str) -> None:
        self.devices.pop(username, None)


@dataclass
class FakeManager:
    """Counts how often it was woken."""

    woken: int = 0

    def wake(self) -> None:
        self.woken += 1


@dataclass
class Clock:
    """Time that moves only when told to."""

    at: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.at


@dataclass(frozen=True)
class Web:
    """A running API: its parts, and a client with the operator's key."""

    state: FleetState
    broker: FakeBroker
    manager: FakeManager
    clock: Clock
    url: str
    key: str
    client: FleetClient
    publisher: PrivateKey
    make_bundle: Callable[..., Path]

    def publish(self, path: Path) -> BundleInfo:
        """Sign and publish a bundle."""
        return self.client.publish_bundle(path, sign(path, self.publisher))

    def published(self, **changes: object) -> BundleInfo:
        """Make, sign and publish a bundle."""
        return self.publish(self.make_bundle(**changes))

    def enrol(self, name: str = "till-7", group: str = "default") -> Enrolment:
        """Enrol a device."""
        token = self.client.create_enrolment_token(group)
        return FleetClient(self.url).enrol(EnrolRequest(token=token, name=name, target=HOST))

    def device(self, name: str = "till-7") -> DeviceInfo:
        """Enrol a device and look at it."""
        return self.client.device(self.enrol(name).device)


def sign(path: Path, key: PrivateKey, **changes: str) -> bytes:
    """The envelope of a bundle of these tests; keywords falsify what it states."""
    stated = {"name": "fraud", "version": "1", "target": "host"} | changes
    if not changes:
        from outrider.runtime.bundle import open_bundle

        manifest = open_bundle(path).manifest
        stated = {"name": manifest.name, "version": manifest.version, "target": manifest.target}
    return encode_envelope(sign_bundle(path, **stated, key=key))


@pytest.fixture(scope="session")
def publisher() -> PrivateKey:
    """The key that the fleet trusts for bundles."""
    return generate_key()


@pytest.fixture(name="sign")
def sign_fixture() -> Callable[..., bytes]:
    """`sign`, for test modules."""
    return sign


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Write a small bundle; its artifact is never run here."""

    def make(
        name: str = "fraud",
        version: str = "1",
        target: str = "host",
        *,
        artifact: bytes = b"code",
        run: str = "run-1",
        goals: tuple[GoalRecord, ...] = (),
    ) -> Path:
        files = {
            "artifacts/k2/model.so": artifact,
            "golden/inputs/features.npy": encode_npy(np.zeros((1, 2), np.float32)),
            "golden/outputs/score.npy": encode_npy(np.zeros(1, np.float32)),
            "baseline.msgpack": b"\x80",
            "provenance.json": json.dumps({"run": {"id": run, "data_digest": "d" * 64}}).encode(),
        }
        entries = {path: file_entry(path, data) for path, data in files.items()}
        code = entries.pop("artifacts/k2/model.so")
        manifest = Manifest(
            schema=1,
            name=name,
            version=version,
            target=target,
            goals=goals,
            signature=Signature(
                inputs=(TensorSpec(name="features", dtype="float32", shape=(None, 2)),),
                outputs=(TensorSpec(name="score", dtype="float32", shape=(None,)),),
                predict="score",
            ),
            artifacts=(
                ArtifactEntry(
                    **msgspec.to_builtins(code),
                    format="native",
                    abi=1,
                    engine="native",
                    package=None,
                    triple=None,
                    needs=Requirements(),
                    inputs=("features",),
                    outputs=("score",),
                    candidate="k2",
                ),
            ),
            candidates=(
                CandidateRecord(
                    id="k2", backend="native", precision="float32", options={}, outcome="chosen", reason="only", rank=1
                ),
            ),
            golden=Golden(
                rows=1,
                evidence="calibration",
                inputs={"features": "golden/inputs/features.npy"},
                outputs={"score": "golden/outputs/score.npy"},
                raw={},
                atol=1e-6,
                rtol=1e-6,
            ),
            source=SourceModel(framework="test", framework_version="1", sha256="0" * 64, description="a test"),
            files=tuple(entries.values()),
            evidence="calibration",
            baseline="baseline.msgpack",
            provenance="provenance.json",
            run_id=run,
        )
        path = tmp_path / f"{name}-{version}-{target}.orb"
        write_bundle(path, manifest, files)
        return path

    return make


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, to be copied."""
    path = tmp_path_factory.mktemp("database") / "fleet.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@pytest.fixture
def database(tmp_path: Path, migrated: Path) -> Iterator[Database]:
    """A migrated SQLite database."""
    path = tmp_path / "test.db"
    shutil.copyfile(migrated, path)
    database = Database(f"sqlite:///{path}")
    yield database
    database.close()


@pytest.fixture
def web(database: Database, serve: Callable[[Database], Web]) -> Web:
    """A running API that trusts `publisher`, on SQLite."""
    return serve(database)


@pytest.fixture
def serve(
    tmp_path: Path, publisher: PrivateKey, make_bundle: Callable[..., Path]
) -> Iterator[Callable[[Database], Web]]:
    """Serve an API over a database until the test ends."""
    servers: list[ApiServer] = []

    def start(database: Database) -> Web:
        settings = FleetSettings(data_dir=tmp_path / "fleet", port=0)
        service.trust_publishers(settings, [publisher.public])
        service.fleet_key(settings)
        with database.session() as session:
            key = create_key(session, "admin", now=1.0)
        listener = bind("127.0.0.1", 0)
        settings = msgspec.structs.replace(settings, port=listener.getsockname()[1])
        broker, manager, clock = FakeBroker(), FakeManager(), Clock()
        registry = Registry(settings.bundles_dir, database, settings.trust_dir)
        state = FleetState(
            settings=settings, database=database, registry=registry, broker=broker, manager=manager, now=clock
        )
        server = ApiServer(create_app(state), listener)
        servers.append(server)
        server.start()
        url = service.local_url(settings)
        return Web(state, broker, manager, clock, url, key, FleetClient(url, key), publisher, make_bundle)

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def predictions() -> Callable[..., Predictions]:
    """A batch of predictions from pairs of id and prediction."""

    def make(bundle: str, *pairs: tuple[str, int | float | str], seq: int = 1) -> Predictions:
        listed = [{"id": key, "score_bin": 3, "prediction": value, "at": 1.0} for key, value in pairs]
        return msgspec.convert(
            {"v": 1, "boot_id": "b", "seq": seq, "slot": "main", "bundle": bundle, "predictions": listed}, Predictions
        )

    return make


def _program(name: str) -> str | None:
    found = shutil.which(name)
    if found:
        return found
    newest = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(newest[-1]) if newest else None


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A throw-away PostgreSQL server on a Unix socket: its URL."""
    initdb, server = _program("initdb"), _program("postgres")
    if initdb is None or server is None:
        reason = "PostgreSQL's initdb is not installed"
        if os.environ.get("OUTRIDER_REQUIRE_ALL") == "1":
            pytest.fail(f"{reason}, and OUTRIDER_REQUIRE_ALL=1 asks for it")
        pytest.skip(reason)
    # The server refuses to run as root, and its socket path must be short and reachable for the user it runs as.
    user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    made = subprocess.run(["mktemp", "-d", "/tmp/orpg.XXXXXX"], user=user, capture_output=True, text=True, check=True)
    folder = Path(made.stdout.strip())
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"}
    subprocess.run(
        [initdb, "-D", folder / "data", "-U", "fleet", "--auth=trust", "--no-sync", "--encoding=UTF8"],
        user=user, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    process = subprocess.Popen(
        [server, "-D", folder / "data", "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
        user=user, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"postgresql://fleet@/postgres?host={folder}"
        _wait_for(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(150):
        database = Database(url)
        try:
            with database.session() as session:
                session.execute(text("select 1"))
            return
        except UnavailableError:
            assert process.poll() is None, "the server ended early"
            threading.Event().wait(0.1)
        finally:
            database.close()
    pytest.fail("PostgreSQL did not come up")
