"""The records that every benchmark's result has."""

from __future__ import annotations

from collections.abc import Sized
from typing import Protocol

import msgspec


class PeerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One contender: its versions (None: not installed), and how it is called."""

    name: str
    version: str | None
    call: str


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine, from /proc/cpuinfo, without its name; `load` is the load average before and after the run."""

    cpu: str
    cores: int
    memory_gb: float
    features: tuple[str, ...]
    system: str
    python: str
    load: tuple[float, float] = (0.0, 0.0)


class Run(Protocol):
    """What every benchmark's result says; it is a msgspec.Struct."""

    @property
    def date(self) -> str:
        """The day, as 2026-01-31."""

    @property
    def quick(self) -> bool:
        """Whether it was asked for fewer figures."""

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped by Ctrl-C and holds what there was."""

    @property
    def machine(self) -> Machine:
        """Where it ran."""

    @property
    def peers(self) -> tuple[PeerInfo, ...]:
        """Who took part, or could have."""

    @property
    def cells(self) -> Sized:
        """The measurements."""
