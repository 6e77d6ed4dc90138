"""The whole fleet in one process: broker → manager → API, and back down in the other order."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from outrider.fleet import audit
from outrider.fleet.app import create_app
from outrider.fleet.auth import ADMIN, create_key, has_keys, write_key_file
from outrider.fleet.db import Database
from outrider.fleet.registry import Registry
from outrider.fleet.server import ApiServer, bind
from outrider.fleet.settings import WILDCARD_HOSTS, FleetSettings
from outrider.fleet.state import FleetState
from outrider.runtime.durable import write_file
from outrider.runtime.errors import ConflictError, StorageError
from outrider.runtime.trust import (
    PrivateKey,
    PublicKey,
    generate_key,
    load_private_key,
    load_public_key,
    write_key_pair,
)

FLEET_KEY = "fleet"


class Interrupted(Exception):
    """Stopping was asked for before everything had started."""


@dataclass(frozen=True)
class Fleet:
    """A running fleet. `new_admin_key` is the API key that this start made, None where there was one already."""

    settings: FleetSettings
    state: FleetState
    server: ApiServer
    broker_kind: str
    broker_address: str
    publishers: int
    new_admin_key: str | None

    @property
    def url(self) -> str:
        """The API on this machine."""
        return local_url(self.settings)


def local_url(settings: FleetSettings) -> str:
    """The API's address for commands on this machine."""
    host = "127.0.0.1" if settings.host in WILDCARD_HOSTS else settings.host
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


@contextmanager
def running(
    settings: FleetSettings,
    *,
    publisher_keys: Sequence[Path] = (),
    stop: threading.Event | None = None,
    progress: Callable[[str], None] = lambda _step: None,
) -> Iterator[Fleet]:
    """Start the fleet, give it to the block, and stop all of it afterwards, however the block ends.

    `stop` set during the start raises Interrupted once the present step is done. Raises PortInUseError, or what is
    wrong with a key, before anything has started, ConflictError where another process uses the data folder.
    """
    from outrider.fleet.broker import start_broker
    from outrider.fleet.manager import Manager

    def step(text: str) -> None:
        if stop is not None and stop.is_set():
            raise Interrupted
        progress(text)

    publishers = [load_public_key(path) for path in publisher_keys]
    with ExitStack() as cleanup:
        listener = cleanup.enter_context(bind(settings.host, settings.port))
        settings = msgspec.structs.replace(settings, port=listener.getsockname()[1])
        step("opening the database")
        cleanup.enter_context(_only_user(settings.data_dir))
        settings.url_path.unlink(missing_ok=True)  # left by a fleet that was killed
        database = Database(settings.database_url)
        cleanup.callback(database.close)
        database.migrate()
        signer = fleet_key(settings)
        trusted = trust_publishers(settings, publishers)
        registry = Registry(settings.bundles_dir, database, settings.trust_dir)
        registry.clean()
        new_key = first_admin_key(settings, database)
        step("starting the broker")
        broker = start_broker(settings.data_dir, settings.broker_port, settings.broker, host=settings.broker_host)
        cleanup.callback(broker.stop)
        step("starting the manager")
        manager = Manager(database, broker, signer, settings)
        cleanup.callback(manager.stop)
        manager.start()
        step("starting the API")
        state = FleetState(settings=settings, database=database, registry=registry, broker=broker, manager=manager)
        server = ApiServer(create_app(state), listener)
        cleanup.callback(server.stop)
        server.start()
        write_file(settings.url_path, local_url(settings).encode("ascii"))
        cleanup.callback(settings.url_path.unlink, missing_ok=True)
        yield Fleet(
            settings=settings,
            state=state,
            server=server,
            broker_kind=broker.kind,
            broker_address=f"{broker.host}:{broker.port}",
            publishers=trusted,
            new_admin_key=new_key,
        )


def fleet_key(settings: FleetSettings) -> PrivateKey:
    """The key that signs desired documents, made at the first start; its public half goes into the trust store."""
    folder = settings.data_dir / "keys"
    path = folder / f"{FLEET_KEY}.key"
    if path.exists():
        key = load_private_key(path)
    else:
        key = generate_key()
        write_key_pair(key, folder, FLEET_KEY)
    write_file(_trusted(settings, "desired") / f"{FLEET_KEY}.pub", key.public.pem().encode("ascii"))
    return key


def trust_publishers(settings: FleetSettings, publishers: Sequence[PublicKey]) -> int:
    """Trust these keys to sign bundles, from now on; returns how many are trusted in all."""
    folder = _trusted(settings, "bundle")
    for key in publishers:
        write_file(folder / f"{key.keyid[:16]}.pub", key.pem().encode("ascii"))
    return len(list(folder.glob("*.pub")))


def first_admin_key(settings: FleetSettings, database: Database) -> str | None:
    """Make the first API key where there is none yet, and keep it for commands on this machine."""
    now = time.time()
    with database.session() as session:
        if has_keys(session):
            return None
        key = create_key(session, ADMIN, now=now)
        audit.record(session, actor="fleet", action="key.create", subject=ADMIN, now=now)
        # Before the commit: a file without its key is replaced at the next start, a key without its file is lost.
        write_key_file(settings.admin_key_path, key)
    return key


def _trusted(settings: FleetSettings, name: str) -> Path:
    folder = settings.trust_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _only_user(folder: Path) -> Iterator[None]:
    """Hold the data folder's lock; the system frees it whatever happens to the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as e:
        raise StorageError(f"cannot use the data folder {folder}: {e.strerror}") from e
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise ConflictError(f"another fleet runs on {folder}", hint="stop it, or choose another --data-dir") from e
        yield
    finally:
        os.close(handle)
