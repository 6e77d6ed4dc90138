"""Engines: what executes one artifact format on a device.

`ENGINES` is the table, keyed by artifact format. A new engine is one module with a subclass of `Engine` and one
line here; its module is imported only when an artifact of its format is opened.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider.runtime.bundle.manifest import ArtifactEntry, Signature
from outrider.runtime.errors import EngineMissingError, TargetMismatchError
from outrider.runtime.target import Arch

if TYPE_CHECKING:
    from outrider.runtime.engines.base import Engine


@dataclass(frozen=True)
class EngineEntry:
    """An engine: its class, the ABI versions of the format it runs, and the module it cannot do without.

    `features` are those of `needs.features` that the engine itself has, on whatever machine. `archs`: the
    architectures of targets that there is an engine for, built in or as a wheel of `package`.
    """

    entry: str
    abis: tuple[int, ...] = (1,)
    module: str | None = None
    package: str | None = None
    features: tuple[str, ...] = ()
    archs: tuple[Arch, ...] = ()


ENGINES: dict[str, EngineEntry] = {
    "native": EngineEntry(
        "outrider.runtime.engines.native:NativeEngine", archs=("x86_64", "aarch64", "armv7", "riscv64")
    ),
    "ncnn": EngineEntry(
        "outrider.runtime.engines.ncnn:NcnnEngine",
        module="ncnn",
        package="ncnn",
        archs=("x86_64", "aarch64", "armv7"),
    ),
    "onnx": EngineEntry(
        "outrider.runtime.engines.onnx:OnnxEngine",
        module="onnxruntime",
        package="onnxruntime",
        archs=("x86_64", "aarch64"),
    ),
    "openvino": EngineEntry(
        "outrider.runtime.engines.openvino:OpenVinoEngine",
        module="openvino",
        package="openvino",
        archs=("x86_64", "aarch64"),
    ),
    "tvm": EngineEntry(
        "outrider.runtime.engines.tvm:TvmEngine",
        module="tvm_ffi",
        package="apache-tvm",
        archs=("x86_64", "aarch64"),
    ),
    "wasm": EngineEntry(
        "outrider.runtime.engines.wasm:WasmEngine",
        module="wasmtime",
        package="wasmtime",
        features=("lime1", "simd128"),
        archs=("wasm32",),
    ),
}


def available(kind: str) -> bool:
    """Whether this machine has what it takes to run artifacts of the format `kind`. Imports nothing."""
    engine = ENGINES.get(kind)
    return engine is not None and (engine.module is None or importlib.util.find_spec(engine.module) is not None)


def supports(kind: str, abi: int) -> bool:
    """Whether this release knows the format in this ABI version."""
    return kind in ENGINES and abi in ENGINES[kind].abis


def engine_class(kind: str) -> type[Engine]:
    """The engine of a format. Raises EngineMissingError where it, or the package that it needs, is not there."""
    engine = ENGINES.get(kind)
    if engine is None:
        raise EngineMissingError(f"no engine runs artifacts of the format {kind!r}", reason="engine")
    if not available(kind):
        raise EngineMissingError(
            f"artifacts of the format {kind!r} need the package {engine.package}",
            hint=f"pip install {engine.package}",
            reason="engine",
        )
    resolved: type[Engine] = pkgutil.resolve_name(engine.entry)
    return resolved


def open_engine(entry: ArtifactEntry, data: bytes, signature: Signature, threads: int = 1) -> Engine:
    """Load an artifact's bytes into the engine of its format, which may use up to `threads` threads for a run.

    Raises EngineMissingError, TargetMismatchError (reason `abi`) or EngineFault.
    """
    engine = engine_class(entry.format)
    if not supports(entry.format, entry.abi):
        known = " ".join(map(str, ENGINES[entry.format].abis))
        raise TargetMismatchError(
            f"{entry.path!r} has ABI {entry.abi} of the format {entry.format!r}; this release knows {known}",
            hint="install a matching version of outrider",
            reason="abi",
        )
    opened = engine.open(entry, data, signature, threads=threads)
    if entry.rows is None:
        return opened
    from outrider.runtime.engines.rowwise import RowWise

    return RowWise(opened, entry.rows)


__all__ = ["ENGINES", "EngineEntry", "available", "engine_class", "open_engine", "supports"]
