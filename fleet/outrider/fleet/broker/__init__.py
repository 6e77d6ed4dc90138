"""The MQTT broker that the fleet runs: a table of kinds, and `start_broker`.

The broker is never trusted: it carries signed documents, and the database is the truth. What differs between the
kinds is how much a hostile client can disturb:

| kind | isolates devices | keeps its state over kill -9 |
| --- | --- | --- |
| mosquitto | yes: password and access list a device | yes, but for the last second |
| iotcore | no: any local client may read and write any topic | no: the manager publishes everything again |
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Protocol, cast

from outrider.fleet.broker.ports import stable_port
from outrider.runtime.errors import BadConfigError

Kind = Literal["mosquitto", "iotcore"]
LOOPBACK = "127.0.0.1"
MAX_PACKET_BYTES = 256 * 1024

# In the order of preference: the first that is installed is taken.
BROKERS: Mapping[str, str] = {
    "mosquitto": "outrider.fleet.broker.mosquitto:MosquittoBroker",
    "iotcore": "outrider.fleet.broker.iotcore:IotcoreBroker",
}


class Broker(Protocol):
    """A running broker that speaks MQTT 5, supervised: it is restarted where it dies.

    `isolates`: whether it holds each device to its own topics. `up_filter`: what the manager subscribes to, to read
    all that devices publish. `generation` rises by one with every restart, so
    that the manager knows to publish again what the broker may have lost.
    """

    kind: ClassVar[Kind]
    isolates: ClassVar[bool]
    up_filter: str
    host: str  # what it listens on: `reachable(host)` is where this machine connects to
    port: int
    manager_username: str
    manager_password: str

    def __init__(self, folder: Path, host: str, port: int) -> None: ...

    @classmethod
    def available(cls) -> bool:
        """Whether this kind is installed here."""
        ...

    @property
    def generation(self) -> int:
        """How many times the broker was restarted since `start`."""
        ...

    @property
    def pid(self) -> int | None:
        """The process id of the broker now, None between two runs."""
        ...

    def start(self) -> None:
        """Start, and return once it answers. Raises PortInUseError or UnavailableError."""
        ...

    def stop(self) -> None:
        """Stop it and wait until its process is gone. May be called twice."""
        ...

    def add_device(self, username: str, password: str) -> None:
        """Let `tenant/device` connect; in force when this returns. An existing password is replaced."""
        ...

    def remove_device(self, username: str) -> None:
        """Refuse `tenant/device` from now on, and end its connection where the kind can."""
        ...


def reachable(host: str) -> str:
    """Where this machine reaches a listener on `host`: on every interface means on loopback too."""
    return {"": LOOPBACK, "0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound


def broker_class(kind: Kind) -> type[Broker]:
    """The implementation of one kind."""
    return cast("type[Broker]", pkgutil.resolve_name(BROKERS[kind]))


def start_broker(
    data_dir: Path | str,
    port: int | None = None,
    kind: Literal["auto", "mosquitto", "iotcore"] = "auto",
    *,
    host: str = LOOPBACK,
) -> Broker:
    """Start the broker with its files under `data_dir/broker`; `auto` takes Mosquitto where it is installed.

    `port` None: the port of the last time where it is free, otherwise any free one; it is remembered, since devices
    keep the address that they enrolled with. Raises BadConfigError where the kind is not installed or cannot be bound
    to `host`, PortInUseError, UnavailableError.
    """
    chosen = _choose(kind)
    folder = Path(data_dir) / "broker"
    folder.mkdir(parents=True, exist_ok=True)
    broker = broker_class(chosen)(folder, host, stable_port(folder / "port", host, port))
    broker.start()
    return broker


def _choose(kind: Literal["auto", "mosquitto", "iotcore"]) -> Kind:
    wanted = [name for name in BROKERS if kind in ("auto", name)]
    for name in wanted:
        found = cast("Kind", name)
        if broker_class(found).available():
            return found
    raise BadConfigError(
        f"no MQTT broker is installed (looked for {', '.join(wanted)})",
        hint="install Mosquitto, or pip install 'outrider[fleet]'",
    )


__all__ = ["BROKERS", "LOOPBACK", "MAX_PACKET_BYTES", "Broker", "Kind", "broker_class", "reachable", "start_broker"]
