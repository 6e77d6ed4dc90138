"""ONNX -> a library for TVM's small runtime: import, lower, schedule, compile, link.

The same model, shapes, target and records give the same bytes. A network without records is scheduled by rule.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider.compiler.backends.tvm import schedules, tune
from outrider.compiler.backends.tvm.imports import import_onnx
from outrider.compiler.backends.tvm.lower import loops, lower
from outrider.compiler.backends.tvm.machine import Machine, machine_for
from outrider.compiler.backends.tvm.records import Records, key_of
from outrider.compiler.foreign import first_line
from outrider.runtime.errors import ToolchainError
from outrider.runtime.target import Libc, Requirements, Target
from outrider.targets.catalog import board_of
from outrider.targets.toolchain import link_shared

if TYPE_CHECKING:
    import tvm

Shapes = Mapping[str, Sequence[int | str]]


def compile_network(
    data: bytes,
    target: Target,
    *,
    shapes: Shapes | None = None,
    records: Records | None = None,
    machine: Machine | None = None,
) -> bytes:
    """Build a serialised ONNX model for a target; `shapes` as in `import_onnx`, `machine` None: the target's best.

    Raises BadModelError, UnsupportedError or ToolchainError.
    """
    return build_network(data, target, records or Records(), shapes=shapes, machine=machine)[0]


def build_network(
    data: bytes, target: Target, records: Records, *, shapes: Shapes | None = None, machine: Machine | None = None
) -> tuple[bytes, Records]:
    """As `compile_network`, with those of the records that the build uses, to go with the artifact."""
    machine = machine or machine_for(target)
    mod = lower(import_onnx(data, shapes), machine)
    used = records.only(key_of(one.function, machine) for one in loops(mod))
    return _export(_compiled(schedule(mod, machine, records), machine), target), used


def tune_network(
    data: bytes,
    target: Target,
    *,
    shapes: Shapes | None = None,
    records: Records | None = None,
    budget: tune.Budget | None = None,
    progress: Callable[[tune.Step], None] | None = None,
    machine: Machine | None = None,
) -> tune.Tuned:
    """Find schedules for a model on this machine, which must be one of the target; see `tune.tune`.

    Raises BadModelError or UnsupportedError.
    """
    machine = machine or machine_for(target)
    return tune.tune(lower(import_onnx(data, shapes), machine), machine, records, budget, progress)


def requirements(target: Target, size: int, machine: Machine | None = None) -> Requirements:
    """What a device needs for a library of `size` bytes."""
    machine = machine or machine_for(target)
    libc = board_of(target).libc or Libc(kind="glibc", version=(2, 17))
    return Requirements(arch=target.arch, features=machine.features, libc=libc, memory_bytes=size)


def schedule(mod: tvm.IRModule, machine: Machine, records: Records) -> tvm.IRModule:
    """A lowered module, changed in place: its loops run as recorded, or else as the rule says."""
    for one in loops(mod):
        shape = schedules.shape_of(one.function)
        choice = None
        if shape is not None:
            choice = records.choice(key_of(one.function, machine)) or schedules.favourite(shape, machine)
        mod.update_func(mod.get_global_var(one.name), schedules.apply(one.function, shape, choice, machine))
    return mod


def _compiled(mod: tvm.IRModule, machine: Machine) -> Any:
    from tvm import relax

    try:
        return relax.build(mod, machine.target())
    except Exception as e:  # TVM raises whatever the C++ side names
        raise ToolchainError(f"TVM cannot compile the network for {machine.name}: {first_line(e)}") from e


def _export(executable: Any, target: Target) -> bytes:
    """Link what TVM wrote as object files."""
    linked: list[bytes] = []

    def link(_: str, objects: list[str], **__: Any) -> None:
        linked.append(link_shared({Path(name).name: Path(name).read_bytes() for name in objects}, target))

    with tempfile.TemporaryDirectory(prefix="outrider-tvm-") as folder:
        executable.export_library(str(Path(folder, "model.so")), fcompile=link, workspace_dir=folder)
    return linked[0]
