"""The board catalogue: one TOML file a board in `boards/`, named after it. A newcomer is one file."""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path

import msgspec

from outrider.runtime.errors import BadConfigError, NotFoundError
from outrider.runtime.target import Arch, Libc, Target

BOARDS = Path(__file__).with_name("boards")
HOST = "host"


class Toolchain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to compile for a board: the compiler's target and CPU names.

    `target` is also that of programs for machines with glibc, `musl` that of programs for machines with musl.
    """

    target: str
    cpu: str
    musl: str | None = None


class Sysroot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A folder with a C library of the board, for QEMU, and the Debian package that holds it."""

    path: str
    package: str


class Emulator(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to run a board's programs elsewhere: a QEMU user program, the CPU that it plays, and C libraries.

    `cpu` is the least machine of the board, so that what runs here needs no more than the board has; `cpus` maps a
    feature beyond the board's to a CPU that has it.
    """

    program: str
    cpu: str
    glibc: Sysroot
    musl: Sysroot
    cpus: dict[str, str] = {}

    def cpu_with(self, features: Collection[str]) -> str:
        """The CPU to play for code that needs these features."""
        return next((cpu for feature, cpu in self.cpus.items() if feature in features), self.cpu)


class Board(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of hardware: what every machine of it has at least.

    `libc` and `emulator` are None for WebAssembly, which has no C library and is run by an engine.
    """

    name: str
    description: str
    arch: Arch
    triple: str
    features: tuple[str, ...]
    toolchain: Toolchain
    libc: Libc | None = None
    emulator: Emulator | None = None

    def target(self) -> Target:
        """The board as a Target."""
        return Target(name=self.name, arch=self.arch, triple=self.triple, features=self.features, libc=self.libc)


@functools.cache
def boards() -> dict[str, Board]:
    """All boards by name, sorted. Raises BadConfigError for a file that does not decode."""
    found = {}
    for path in sorted(BOARDS.glob("*.toml")):
        try:
            board = msgspec.toml.decode(path.read_bytes(), type=Board)
        except msgspec.DecodeError as e:
            raise BadConfigError(f"the board {path.name} cannot be read: {e}") from e
        if board.name != path.stem:
            raise BadConfigError(f"the board {path.name} calls itself {board.name!r}")
        found[board.name] = board
    return found


def target_names() -> tuple[str, ...]:
    """The names that `get_target` knows: `host`, then the boards."""
    return (HOST, *boards())


def get_target(name: str) -> Target:
    """The target of this name; `host` is the present machine. Raises NotFoundError."""
    if name == HOST:
        from outrider.runtime.probe import host_target

        return host_target()
    try:
        return boards()[name].target()
    except KeyError as e:
        raise NotFoundError(f"there is no target {name!r}", hint=f"one of {', '.join(target_names())}") from e


def board_of(target: Target) -> Board:
    """The board that a target is of: by its name, or else the one of its architecture. Raises NotFoundError."""
    known = boards()
    if target.name in known and known[target.name].arch == target.arch:
        return known[target.name]
    for board in known.values():
        if board.arch == target.arch:
            return board
    raise NotFoundError(f"there is no board of the architecture {target.arch}")
