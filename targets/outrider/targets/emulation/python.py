"""The emulated Python, and running an artifact of any format in it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

import outrider.runtime
from outrider.runtime.bundle.manifest import ArtifactEntry, Signature
from outrider.runtime.caches import cache_folder
from outrider.runtime.engines import ENGINES
from outrider.runtime.errors import EngineFault, ToolchainError
from outrider.runtime.probe import host_target
from outrider.runtime.target import Target
from outrider.targets.catalog import board_of
from outrider.targets.emulate import find_emulator
from outrider.targets.emulation.debian import PYTHON_PACKAGES, python_program, python_root
from outrider.targets.emulation.wheels import wheel_folder

TIMEOUT_S = 600
RUNTIME_PACKAGES = ("cffi", "cryptography", "msgspec", "numpy", "paho-mqtt", "psutil", "pycparser")
_SCRIPT = Path(__file__).with_name("run_artifact.py")
_SOURCES = Path(outrider.runtime.__file__).parents[2]
_MESSAGE_LIMIT = 4000  # characters of the program's output that an error quotes

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class EmulatedPython:
    """A Python of the target's architecture, in which `outrider.runtime` and its dependencies can be imported.

    `command` starts it, `path` is its PYTHONPATH. Made by `ready`. On a machine of the target's own architecture it is
    the present Python.
    """

    target: Target
    command: tuple[str, ...]
    path: tuple[Path, ...]

    def run(self, arguments: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> str:
        """Run with these arguments (`["-c", "…"]`, a script and its arguments); returns what it prints.

        Raises EngineFault where it fails, with the end of what it says, and where it takes too long.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LD_", "PYTHON"))}
        environment = {
            **kept,
            "PYTHONPATH": os.pathsep.join(map(str, self.path)),
            "PYTHONNOUSERSITE": "1",
            "PYTHONPYCACHEPREFIX": str(cache_folder() / "emulation" / "pycache" / self.target.arch),
            "LC_ALL": "C.UTF-8",
        }
        try:
            done = subprocess.run(
                [*self.command, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
                env=environment,
            )
        except subprocess.TimeoutExpired as e:
            raise EngineFault(f"Python for {self.target.name} did not finish within {timeout_s} s") from e
        except OSError as e:
            raise ToolchainError(f"{self.command[0]} cannot be started: {e.strerror}") from e
        if done.returncode != 0:
            message = done.stderr.decode(errors="replace").strip()[-_MESSAGE_LIMIT:]
            raise EngineFault(f"Python for {self.target.name} ended with status {done.returncode}: {message}")
        return done.stdout.decode(errors="replace")


def ready(target: Target, packages: Sequence[str] = ()) -> EmulatedPython:
    """The Python of a target with these packages beside those of the runtime; what is missing is fetched, once.

    Dependencies of `packages` are not fetched by themselves. Raises ToolchainError where QEMU, apt or dpkg-deb is not
    installed, UnavailableError where something cannot be fetched.
    """
    if host_target().arch == target.arch:
        path = tuple(Path(each) for each in (str(_SOURCES), *sys.path) if each)
        return EmulatedPython(target=target, command=(sys.executable,), path=path)
    emulator = board_of(target).emulator
    if emulator is None:
        raise ToolchainError(f"there are no programs for {target.name}: an engine runs its artifacts")
    program = find_emulator(emulator)
    if program is None:
        raise ToolchainError(f"{emulator.program} is not installed", hint="on Debian: qemu-user-static")
    root = python_root(target.arch)
    python = python_program(root)
    wanted = dict.fromkeys((*RUNTIME_PACKAGES, *packages))
    there = PYTHON_PACKAGES.get(target.arch, {})
    folders = [wheel_folder(package, target.arch, python) for package in wanted if package not in there]
    # Wheels for 32-bit ARM take NEON for granted.
    command = (program, "-cpu", emulator.cpu_with(("neon",)), "-L", str(root), str(python))
    return EmulatedPython(target=target, command=command, path=(_SOURCES, *folders))


def run_artifact(
    entry: ArtifactEntry,
    data: bytes,
    signature: Signature,
    inputs: Mapping[str, Array],
    target: Target,
    *,
    packages: Sequence[str] | None = None,
    threads: int = 1,
) -> dict[str, Array]:
    """Run an artifact of any format on a batch, as its engine would on a device of `target`.

    `packages` are those that the engine needs; None: the one that the table of engines names. Raises EngineFault with
    what the engine says, and as `ready` does.
    """
    if packages is None:
        named = ENGINES[entry.format].package if entry.format in ENGINES else entry.package
        packages = (named,) if named else ()
    python = ready(target, packages)
    with _handed_over(entry, data, signature, inputs) as folder:
        python.run([str(_SCRIPT), str(folder), str(threads)])
        return {
            name: np.load(folder / f"output{number}.npy", allow_pickle=False)
            for number, name in enumerate(entry.outputs)
        }


@contextlib.contextmanager
def _handed_over(
    entry: ArtifactEntry, data: bytes, signature: Signature, inputs: Mapping[str, Array]
) -> Iterator[Path]:
    """A folder with what `run_artifact.py` reads."""
    with tempfile.TemporaryDirectory(prefix="outrider-emulate-") as name:
        folder = Path(name)
        (folder / "entry.json").write_bytes(msgspec.json.encode(entry))
        (folder / "signature.json").write_bytes(msgspec.json.encode(signature))
        (folder / "artifact").write_bytes(data)
        for number, given in enumerate(entry.inputs):
            np.save(folder / f"input{number}.npy", np.ascontiguousarray(inputs[given]), allow_pickle=False)
        yield folder
