"""What all contenders have, whatever they run. The memory of fresh processes that import this is measured."""

from __future__ import annotations

from abc import ABC
from importlib import metadata
from typing import ClassVar


class NotSupported(Exception):  # an outcome to show, not an error
    """The peer cannot run this model; the message says why."""


class Contender(ABC):
    """One way to run a model.

    `packages` are the distributions whose versions are shown; `modules` is what a process imports before it can load a
    model; `call` says how one prediction is called.
    """

    packages: ClassVar[tuple[str, ...]]
    modules: ClassVar[tuple[str, ...]]
    call: ClassVar[str]

    @classmethod
    def version(cls) -> str | None:
        """The versions of its packages; None where one is not installed."""
        try:
            return ", ".join(f"{package} {metadata.version(package)}" for package in cls.packages)
        except metadata.PackageNotFoundError:
            return None


def is_ours(name: str) -> bool:
    """Whether a name of a table of peers is Outrider's."""
    return name.startswith("outrider")
