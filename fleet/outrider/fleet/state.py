"""What the API works with: one immutable record, made by `outrider up` and reached through the application."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fastapi import Request

from outrider.fleet.db import Database
from outrider.fleet.registry import Registry
from outrider.fleet.settings import FleetSettings


class BrokerAccess(Protocol):
    """What the API needs of the broker (`outrider.fleet.broker.Broker`)."""

    @property
    def host(self) -> str:
        """Where devices reach it."""

    @property
    def port(self) -> int:
        """Where devices reach it."""

    @property
    def kind(self) -> str:
        """Which broker it is."""

    def add_device(self, username: str, password: str) -> None:
        """Let a device connect."""

    def remove_device(self, username: str) -> None:
        """Let it connect no longer."""


class Waker(Protocol):
    """What the API needs of the manager (`outrider.fleet.manager.Manager`)."""

    def wake(self) -> None:
        """Look at rollouts and desired state now, not at the next tick."""


@dataclass(frozen=True)
class FleetState:
    """Everything that routes use. `now` gives seconds since the epoch, so that tests can move time."""

    settings: FleetSettings
    database: Database
    registry: Registry
    broker: BrokerAccess
    manager: Waker
    now: Callable[[], float] = time.time


def state_of(request: Request) -> FleetState:
    """The state of the application that serves this request."""
    state = request.app.state.fleet
    assert isinstance(state, FleetState)
    return state
