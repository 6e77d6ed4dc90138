"""Running a native artifact for a foreign target: a small C program, built for it, under QEMU's user mode.

QEMU plays the least machine of the board that has what the artifact needs. On a machine of the target's own
architecture the program runs without QEMU. WebAssembly needs none of this: its engine runs it anywhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.bundle.manifest import ArtifactEntry, Signature
from outrider.runtime.engines.base import Engine, are_doubles, numpy_dtype, tensors
from outrider.runtime.errors import BadDataError, EngineFault, ToolchainError
from outrider.runtime.probe import host_target
from outrider.runtime.target import Target
from outrider.targets.catalog import Emulator, board_of
from outrider.targets.toolchain import build_program

RUNNER = Path(__file__).with_name("runner.c")
TIMEOUT_S = 600
_DOUBLES = b"outrider_run_double\0"  # as the names of a library's functions end

Array = NDArray[Any]


class EmulatedEngine(Engine):
    """Runs a native artifact for `target` in a process of its own each time; calls may run side by side.

    Raises ToolchainError where the compiler or the emulator is not installed, or plays no CPU that has what the
    artifact needs.
    """

    def __init__(self, entry: ArtifactEntry, library: bytes, target: Target, signature: Signature) -> None:
        self._prefix = emulator_command(target, entry.needs.features)
        program = [Path(name).name.removesuffix("-static") for name in self._prefix[:1]]
        self.binding = " ".join((*program, *self._prefix[1:3])) or "a process"
        self.doubles = _DOUBLES in library
        self._entry, self._target, self._signature = entry, target, signature
        self._folder = tempfile.TemporaryDirectory(prefix="outrider-emulate-")
        folder = Path(self._folder.name)
        self._command = (str(folder / "runner"), str(folder / "artifact.so"))
        try:
            source = RUNNER.read_text(encoding="utf-8")
            build_program({RUNNER.name: source}, folder / "runner", target, ("-ldl",))
            (folder / "runner").chmod(0o755)
            (folder / "artifact.so").write_bytes(library)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, entry: ArtifactEntry, data: bytes, signature: Signature, *, threads: int = 1) -> EmulatedEngine:
        """For this machine, whose programs need no emulator. A run takes one thread."""
        del threads
        return cls(entry, data, host_target(), signature)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a batch, of float64 for float32 too where `doubles` says so.

        Raises EngineFault where the artifact crashes or fails, ToolchainError where the emulator does, BadDataError for
        a batch of no rows.
        """
        arrays = [np.ascontiguousarray(inputs[name]) for name in self._entry.inputs]
        batch = len(arrays[0])
        if batch == 0:
            raise BadDataError("there are no rows to run")
        specs = tensors(self._entry.outputs, self._signature.outputs)
        shapes = [(batch, *(size for size in spec.shape[1:] if size is not None)) for spec in specs]
        outputs = {
            spec.name: np.empty(shape, numpy_dtype(spec.dtype)) for spec, shape in zip(specs, shapes, strict=True)
        }
        sizes = [*(str(a.nbytes) for a in arrays), "--", *(str(a.nbytes) for a in outputs.values())]
        suffix = "_double" if are_doubles(arrays, tensors(self._entry.inputs, self._signature.inputs)) else ""
        command = [*self._prefix, *self._command, suffix, str(batch), *sizes]
        data = _run(command, b"".join(array.tobytes() for array in arrays), self._target)
        return _split(data, outputs)

    def close(self) -> None:
        """Remove the program."""
        self._folder.cleanup()


def run_native(
    entry: ArtifactEntry, library: bytes, inputs: Mapping[str, Array], target: Target, signature: Signature
) -> dict[str, Array]:
    """Run a native artifact once, as `NativeEngine.run` would on a device of `target`; see `EmulatedEngine`."""
    with closing(EmulatedEngine(entry, library, target, signature)) as engine:
        return engine.run(inputs)


def emulator_command(target: Target, features: Collection[str] = ()) -> tuple[str, ...]:
    """What to put before a program of `target` to run it here; nothing on a machine of the same architecture.

    `features` are those that the program needs; beyond the board's they call for a CPU that has them. Raises
    ToolchainError where QEMU or the target's C library is not installed, or where no such CPU is known.
    """
    board = board_of(target)
    emulator = board.emulator
    if emulator is None:
        raise ToolchainError(f"there are no programs for {target.name}: an engine runs its artifacts")
    if host_target().arch == target.arch:
        return ()
    unknown = [feature for feature in features if feature not in (*board.features, *emulator.cpus)]
    if unknown:
        raise ToolchainError(f"{emulator.program} plays no CPU that has {' '.join(unknown)}")
    sysroot = emulator.musl if target.libc is not None and target.libc.kind == "musl" else emulator.glibc
    program = find_emulator(emulator)
    if program is None or not Path(sysroot.path).is_dir():
        raise ToolchainError(
            f"programs for {target.name} cannot be run here: {emulator.program} or {sysroot.path} is missing",
            hint=f"on Debian: qemu-user-static, and {sysroot.package} in {sysroot.path}",
        )
    return (program, "-cpu", emulator.cpu_with(features), "-L", sysroot.path)


def find_emulator(emulator: Emulator) -> str | None:
    """The path of the QEMU program, static or not, or None."""
    return shutil.which(f"{emulator.program}-static") or shutil.which(emulator.program)


def _run(command: list[str], data: bytes, target: Target) -> bytes:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LD_")}
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=TIMEOUT_S, check=False, env=environment)
    except subprocess.TimeoutExpired as e:
        raise EngineFault(f"the artifact for {target.name} did not finish within {TIMEOUT_S} s") from e
    except OSError as e:
        raise ToolchainError(f"{command[0]} cannot be started: {e.strerror}") from e
    if done.returncode != 0:
        message = done.stderr.decode(errors="replace").strip()[-2000:]
        if message.startswith(f"{Path(command[0]).name}:") and "Assertion" in message:
            raise ToolchainError(f"the emulator of {target.name} failed: {message}")
        raise EngineFault(f"the artifact for {target.name} failed with status {done.returncode}: {message}")
    return done.stdout


def _split(data: bytes, outputs: dict[str, Array]) -> dict[str, Array]:
    offset = 0
    for array in outputs.values():
        end = offset + array.nbytes
        array[...] = np.frombuffer(data[offset:end], array.dtype).reshape(array.shape)
        offset = end
    return outputs
