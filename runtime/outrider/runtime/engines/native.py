"""The engine of native artifacts: a shared library of the C ABI in `native_abi.h`, loaded from memory."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from outrider.runtime.bundle.manifest import ArtifactEntry, Signature, TensorSpec
from outrider.runtime.engines.base import Array, Engine, RowFunction, numpy_dtype, tensors
from outrider.runtime.errors import EngineFault, TargetMismatchError

ABI = 1
ALIGNMENT = 64  # bytes, of the workspace
Binding = Literal["cffi", "ctypes"]
Call = Callable[[], int]

_DECLARATIONS = """
uint32_t outrider_abi(void);
size_t outrider_workspace(int64_t batch);
int32_t outrider_run(const void *const *inputs, void *const *outputs, int64_t batch, void *workspace);
"""


class NativeEngine(Engine):
    """Runs a native artifact.

    The engine owns one workspace, so calls from several threads are safe and run one after the other; the
    interpreter's lock is released while the artifact runs. For calls side by side, open one engine a thread.
    """

    def __init__(self, library: _Library, entry: ArtifactEntry, signature: Signature) -> None:
        self.binding = library.binding
        self._library: _Library | None = library
        self._path = entry.path
        self._inputs = tensors(entry.inputs, signature.inputs)
        self._outputs = tensors(entry.outputs, signature.outputs)
        self._lock = threading.Lock()
        self._workspace = _aligned(0)

    @classmethod
    def open(
        cls, entry: ArtifactEntry, data: bytes, signature: Signature, *, binding: Binding | None = None
    ) -> NativeEngine:
        """Load the library and check its ABI. `binding` None: cffi where it is installed, else ctypes."""
        library = _load(data, entry.path, binding)
        try:
            found = library.abi()
            if found != ABI or entry.abi != ABI:
                raise TargetMismatchError(
                    f"{entry.path!r} has native ABI {found}, the manifest says {entry.abi}, this release knows {ABI}",
                    reason="abi",
                )
            return cls(library, entry, signature)
        except BaseException:
            library.close()
            raise

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a batch; an empty one gives empty outputs without a call."""
        arrays = [inputs[spec.name] for spec in self._inputs]
        batch = arrays[0].shape[0] if arrays else 1
        outputs = {s.name: np.empty(_shape(s, batch), numpy_dtype(s.dtype)) for s in self._outputs}
        with self._lock:
            library = self._open_library()
            if batch:
                workspace = self._reserve(library, batch)
                self._check(library.run(arrays, list(outputs.values()), batch, workspace))
        return outputs

    def row_function(self, output: str) -> RowFunction | None:
        """One row through buffers that stay where they are, so that no address is looked up in a call."""
        if len(self._inputs) != 1 or self._inputs[0].dtype != "float32" or len(self._inputs[0].shape) != 2:
            return None
        if output not in {spec.name for spec in self._outputs}:
            return None
        library = self._open_library()
        row = np.zeros(_shape(self._inputs[0], 1), np.float32)
        results = {s.name: np.zeros(_shape(s, 1), numpy_dtype(s.dtype)) for s in self._outputs}
        wanted, lock = results[output], self._lock
        with lock:
            call = library.bind([row], list(results.values()), 1, _aligned(library.workspace(1)))

        def run_row(x: Array) -> Array:
            with lock:
                if self._library is None:
                    self._open_library()
                row[...] = x
                if status := call():
                    self._check(status)
                return wanted.copy()

        return run_row

    def close(self) -> None:
        """Unload the library, once no call is running."""
        with self._lock:
            if self._library is not None:
                self._library.close()
                self._library = None

    def _open_library(self) -> _Library:
        if self._library is None:
            raise EngineFault(f"{self._path!r} was closed")
        return self._library

    def _reserve(self, library: _Library, batch: int) -> Array:
        needed = library.workspace(batch)
        if needed > self._workspace.nbytes:
            try:
                self._workspace = _aligned(needed)
            except (MemoryError, ValueError) as e:
                raise EngineFault(f"{self._path!r} asks for {needed} bytes of memory for {batch} rows") from e
        return self._workspace

    def _check(self, status: int) -> None:
        if status:
            raise EngineFault(f"{self._path!r} failed with the status {status}")


class _Library(ABC):
    """A loaded artifact behind one of the two ways to call C."""

    binding: Binding

    def __init__(self, image: _Image) -> None:
        self._image = image

    @abstractmethod
    def abi(self) -> int: ...

    @abstractmethod
    def workspace(self, batch: int) -> int: ...

    @abstractmethod
    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array], batch: int, workspace: Array) -> Call:
        """A function of no arguments that runs on these arrays, which it keeps alive, and returns the status."""

    @abstractmethod
    def unload(self) -> None: ...

    def run(self, inputs: Sequence[Array], outputs: Sequence[Array], batch: int, workspace: Array) -> int:
        return self.bind(inputs, outputs, batch, workspace)()

    def close(self) -> None:
        self.unload()
        self._image.close()


class _CffiLibrary(_Library):
    binding = "cffi"

    def __init__(self, image: _Image) -> None:
        import cffi

        super().__init__(image)
        self._ffi = cffi.FFI()
        self._ffi.cdef(_DECLARATIONS)
        self._lib = self._ffi.dlopen(image.path, self._ffi.RTLD_NOW)
        try:
            self._abi, self._workspace = self._lib.outrider_abi, self._lib.outrider_workspace
            self._run = self._lib.outrider_run
        except AttributeError:
            self.unload()
            raise

    def abi(self) -> int:
        return int(self._abi())

    def workspace(self, batch: int) -> int:
        return int(self._workspace(batch))

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array], batch: int, workspace: Array) -> Call:
        buffer = self._ffi.from_buffer
        kept = [buffer(array) for array in (*inputs, *outputs, workspace)]
        ins = self._ffi.new("void *[]", kept[: len(inputs)])
        outs = self._ffi.new("void *[]", kept[len(inputs) : -1])
        call = functools.partial(self._run, ins, outs, batch, kept[-1])
        call.__dict__["kept"] = kept
        return call

    def unload(self) -> None:
        self._ffi.dlclose(self._lib)


class _CtypesLibrary(_Library):
    binding = "ctypes"

    def __init__(self, image: _Image) -> None:
        import _ctypes

        super().__init__(image)
        self._lib = ctypes.CDLL(image.path, mode=os.RTLD_NOW)
        self._dlclose = _ctypes.dlclose
        try:
            self._abi, self._workspace = self._lib.outrider_abi, self._lib.outrider_workspace
            self._run = self._lib.outrider_run
        except AttributeError:
            self.unload()
            raise
        self._abi.restype = ctypes.c_uint32
        self._workspace.restype = ctypes.c_size_t
        self._workspace.argtypes = [ctypes.c_int64]
        self._run.restype = ctypes.c_int32
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]

    def abi(self) -> int:
        return int(self._abi())

    def workspace(self, batch: int) -> int:
        return int(self._workspace(batch))

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array], batch: int, workspace: Array) -> Call:
        ins = (ctypes.c_void_p * len(inputs))(*(array.ctypes.data for array in inputs))
        outs = (ctypes.c_void_p * len(outputs))(*(array.ctypes.data for array in outputs))
        call = functools.partial(self._run, ins, outs, ctypes.c_int64(batch), ctypes.c_void_p(workspace.ctypes.data))
        call.__dict__["kept"] = (inputs, outputs, workspace)
        return call

    def unload(self) -> None:
        self._dlclose(self._lib._handle)


class _Image:
    """A library's bytes under a path that the dynamic loader can open: in memory, or else a file.

    The descriptor stays open until the library is unloaded. The loader knows libraries by their path, so a number
    given out again would make it return the old library for the new path.
    """

    def __init__(self, data: bytes, *, in_memory: bool) -> None:
        self._file: Path | None = None
        if in_memory:
            self._fd = os.memfd_create("outrider-artifact", os.MFD_CLOEXEC)
            self.path = f"/proc/self/fd/{self._fd}"
        else:
            self._fd, self.path = tempfile.mkstemp(prefix="outrider-", suffix=".so")
            self._file = Path(self.path)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.unlink()

    def unlink(self) -> None:
        """Remove the file, which a loaded library no longer needs."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink()
            self._file = None


def _load(data: bytes, origin: str, binding: Binding | None) -> _Library:
    """Load from memory; where the system forbids that (no /proc, sealed noexec), from a temporary file."""
    kind = _binding_class(binding)
    problems = []
    for in_memory in (True, False):
        try:
            image = _Image(data, in_memory=in_memory)
        except (OSError, AttributeError) as e:
            problems.append(str(e))
            continue
        try:
            library = kind(image)
        except (OSError, AttributeError) as e:
            image.close()
            problems.append(str(e))
        else:
            image.unlink()
            return library
    raise EngineFault(f"the library {origin!r} cannot be loaded: {problems[-1]}")


def _binding_class(binding: Binding | None) -> type[_Library]:
    if binding == "ctypes":
        return _CtypesLibrary
    try:
        import cffi
    except ImportError:
        if binding == "cffi":
            raise
        return _CtypesLibrary
    del cffi
    return _CffiLibrary


def _shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    return (batch, *(size for size in spec.shape[1:] if size is not None))


def _aligned(size: int) -> Array:
    """At least `size` bytes, and at least one, whose address is a multiple of ALIGNMENT."""
    size = max(size, 1)
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]
