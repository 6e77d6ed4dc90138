"""The engine of libraries that TVM compiled: its small runtime and no compiler, loaded from memory.

What a device needs is the package apache-tvm-ffi, which calls, and `libtvm_runtime.so`, which executes: the one in the
package apache-tvm, of which nothing else is touched, or one that the dynamic loader finds by its name.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import struct
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from outrider.runtime.bundle.manifest import ArtifactEntry, Signature
from outrider.runtime.engines.base import Array, Engine, numpy_dtype, tensors
from outrider.runtime.engines.library import in_reach
from outrider.runtime.errors import BadBundleError, EngineFault, EngineMissingError

RUNTIME = "libtvm_runtime.so"
_LOADER = "ffi.Module.load_from_file.so"  # what `tvm_ffi.load_module` calls for a path that ends so
_ENTRY, _MAIN = "vm_load_executable", "main"
_ELF_HEADER, _ELF_32 = 64, 1  # bytes of the longer header, and what its fifth byte says of the shorter one
_CPU, _POOLED = 1, 2  # a device type of DLPack, and the allocator that keeps what was freed
_loaded: list[ctypes.CDLL] = []  # the runtime, once it is there; it stays for the life of the process
_lock = threading.Lock()


class TvmEngine(Engine):
    """Runs a library that TVM's virtual machine executes. Calls from several threads run side by side.

    Each of them has a machine of its own, with the same code and weights; the interpreter's lock is released while it
    runs. Inputs are read where they lie: the artifact relies on no alignment beyond that of their elements. Tensors are
    matched by position. TVM reads how many threads a run takes once in a process, so the first engine decides for all,
    and a TVM_NUM_THREADS in the environment for that one; an artifact built for one core never takes more than one.
    """

    binding = "tvm_ffi"

    def __init__(self, module: Any, entry: ArtifactEntry, signature: Signature) -> None:
        specs = tensors(entry.outputs, signature.outputs)
        self._module = module
        self._inputs = entry.inputs
        self._may_be_empty = any(None in spec.shape for spec in tensors(entry.inputs, signature.inputs))
        self._outputs = tuple((spec.name, numpy_dtype(spec.dtype), spec.shape) for spec in specs)
        self._path = entry.path
        self._machines: list[Any] = []  # the functions of those that no call is using

    @classmethod
    def open(cls, entry: ArtifactEntry, data: bytes, signature: Signature, *, threads: int = 1) -> TvmEngine:
        """Load the library from memory, or from a temporary file where the system forbids that, and start a machine.

        Raises EngineMissingError where a part of the runtime is not installed, EngineFault for a library that cannot
        be loaded, BadBundleError for one of other inputs than the manifest's.
        """
        load = _runtime(threads)
        if _is_cut_short(data):
            raise EngineFault(f"the library {entry.path!r} is no ELF file, or is cut short")
        with in_reach(data, entry.path) as paths:
            module = _first(load, paths, entry.path)
        engine = cls(module, entry, signature)
        try:
            engine._check(len(entry.inputs))
        except BadBundleError:
            raise
        except Exception as e:  # the binding raises the built-in exception that the C++ side names
            raise EngineFault(f"{entry.path!r} is no library of TVM's virtual machine: {_short(e)}") from e
        return engine

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a batch; an empty one gives empty outputs without a call, 0 for every free dimension."""
        module = self._module
        if module is None:
            raise EngineFault(f"{self._path!r} was closed")
        arrays = [inputs[name] for name in self._inputs]
        if self._may_be_empty and not all(array.size for array in arrays):
            return {name: np.empty([size or 0 for size in shape], dtype) for name, dtype, shape in self._outputs}
        try:
            try:
                machine = self._machines.pop()
            except IndexError:
                machine = _machine(module)
            try:
                result = machine(*arrays)
            except BufferError:  # DLPack hands out nothing that must not be written to
                result = machine(*map(np.array, arrays))
            self._machines.append(machine)
            values = [result] if hasattr(result, "__dlpack__") else list(result)
            # Copies, since a machine may give an input or a weight of its own as a result.
            found = [np.array(np.from_dlpack(value)) for value in values]
        except Exception as e:  # as above
            raise EngineFault(f"TVM failed on {self._path!r}: {_short(e)}") from e
        if len(found) != len(self._outputs):
            raise EngineFault(f"{self._path!r} gave {len(found)} outputs, unlike its manifest")
        return {
            name: value if value.dtype == dtype else value.astype(dtype)
            for (name, dtype, _), value in zip(self._outputs, found, strict=True)
        }

    def close(self) -> None:
        """Drop the machines; the library is unloaded once no call is running."""
        self._module = None
        self._machines.clear()

    def _check(self, inputs: int) -> None:
        """Start the first machine, and compare the artifact's inputs with the manifest's."""
        executable = self._module[_ENTRY]()
        found = int(executable["get_function_arity"](_MAIN))
        if found != inputs:
            raise BadBundleError(f"{self._path!r} has {found} inputs, unlike its manifest")
        self._machines.append(_started(executable))


def _machine(module: Any) -> Any:
    return _started(module[_ENTRY]())


def _started(executable: Any) -> Any:
    """The main function of a machine whose values and constants are in main memory."""
    executable["vm_initialization"](_CPU, 0, _POOLED, _CPU, 0, _POOLED)
    return executable[_MAIN]


def _runtime(threads: int) -> Any:
    """What loads libraries, from the runtime, which is loaded once. Raises EngineMissingError."""
    os.environ.setdefault("TVM_NUM_THREADS", str(threads))
    os.environ.setdefault("TVM_BIND_THREADS", "0")  # or else the caller's thread is bound to a core of TVM's choice
    tvm_ffi = _import_without_torch()
    with _lock:
        if not _loaded:
            path = find_runtime()
            try:
                _loaded.append(ctypes.CDLL(path, ctypes.RTLD_GLOBAL))
            except OSError as e:
                raise EngineMissingError(
                    f"TVM artifacts need {RUNTIME}, which cannot be loaded: {e}",
                    hint="pip install apache-tvm",
                    reason="engine",
                ) from e
    return tvm_ffi.get_global_func(_LOADER)


def _import_without_torch() -> Any:
    """The package tvm_ffi, which would import torch wherever that is installed, for 200 MB of memory and no use here.

    Raises EngineMissingError.
    """
    os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
    with _lock:
        hidden = "tvm_ffi" not in sys.modules and "torch" not in sys.modules
        try:
            if hidden:
                sys.modules["torch"] = None  # type: ignore[assignment]
            return importlib.import_module("tvm_ffi")
        except ImportError as e:
            raise EngineMissingError(
                "TVM artifacts need the package apache-tvm-ffi", hint="pip install apache-tvm", reason="engine"
            ) from e
        finally:
            if hidden:
                sys.modules.pop("torch", None)


def find_runtime() -> str:
    """The path of TVM's runtime library in the package apache-tvm, which is not imported; or else its mere name."""
    spec = importlib.util.find_spec("tvm")
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        path = Path(folder, "lib", RUNTIME)
        if path.is_file():
            return str(path)
    return RUNTIME


def _is_cut_short(data: bytes) -> bool:
    """Whether the table of sections, with which a library ends, is not there: mapping such a file kills the process."""
    if data[:4] != b"\x7fELF" or len(data) < _ELF_HEADER:
        return True
    where, counts = ("<Q", 0x28), 0x3A
    if data[4] == _ELF_32:
        where, counts = ("<I", 0x20), 0x2E
    (start,) = struct.unpack_from(where[0], data, where[1])
    size, count = struct.unpack_from("<HH", data, counts)
    return bool(start + size * count > len(data))


def _first(load: Any, paths: Any, origin: str) -> Any:
    """The library under the first of these paths that the dynamic loader takes. Raises EngineFault."""
    problem: Exception | None = None
    for path in paths:
        try:
            return load(path, "so")
        except Exception as e:  # as above
            problem = e
    raise EngineFault(f"the library {origin!r} cannot be loaded: {_short(problem)}") from problem


def _short(problem: Exception | None) -> str:
    """The first line of a message, which may come with the frames of the C++ side."""
    return next(iter(str(problem).strip().splitlines()), "") or type(problem).__name__
