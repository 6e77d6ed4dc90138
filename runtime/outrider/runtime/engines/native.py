"""The engine of native artifacts: a shared library of the C ABI in `native_abi.h`, loaded from memory."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from outrider.runtime.bundle.manifest import ArtifactEntry, Signature, TensorSpec
from outrider.runtime.engines.base import Array, Engine, MatrixFunction, are_doubles, numpy_dtype, tensors
from outrider.runtime.engines.library import Binding, Library, load_library
from outrider.runtime.engines.python_call import CallOwner, python_function
from outrider.runtime.engines.threads import RowThreads
from outrider.runtime.errors import EngineFault, TargetMismatchError

ABI = 1
ALIGNMENT = 64  # bytes, of a workspace
_FLOAT32 = np.dtype(np.float32)


class NativeEngine(Engine):
    """Runs a native artifact.

    Calls from several threads run side by side, each with a workspace of its own; the interpreter's lock is released
    while the artifact runs a batch. With `threads` above one, large batches are split over a pool that stays.
    """

    def __init__(self, library: Library, entry: ArtifactEntry, signature: Signature, threads: int) -> None:
        self.binding = library.binding
        self.doubles = library.doubles
        self._library: Library | None = library
        self._path = entry.path
        self._inputs = tensors(entry.inputs, signature.inputs)
        self._outputs = tensors(entry.outputs, signature.outputs)
        self._threads = RowThreads(threads)
        self._workspaces: list[Array] = []  # those that no call is using
        self._functions: list[weakref.ref[CallOwner]] = []  # an engine and its functions make no cycle
        # Last, since one that is not made gives up nothing; runs once, in `close` or where the engine is dropped.
        self._give_up = weakref.finalize(self, library.release)
        self._give_up.atexit = False

    @classmethod
    def open(
        cls,
        entry: ArtifactEntry,
        data: bytes,
        signature: Signature,
        *,
        threads: int = 1,
        binding: Binding | None = None,
    ) -> NativeEngine:
        """Load the library and check its ABI. `binding` None: cffi where it is installed, else ctypes."""
        library = load_library(data, entry.path, binding)
        try:
            found = library.abi()
            if found != ABI or entry.abi != ABI:
                raise TargetMismatchError(
                    f"{entry.path!r} has native ABI {found}, the manifest says {entry.abi}, this release knows {ABI}",
                    reason="abi",
                )
            return cls(library, entry, signature, threads)
        except BaseException:
            library.release()
            raise

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a batch; an empty one gives empty outputs without a call."""
        arrays = [inputs[spec.name] for spec in self._inputs]
        batch = arrays[0].shape[0] if arrays else 1
        outputs = {s.name: np.empty(_shape(s, batch), numpy_dtype(s.dtype)) for s in self._outputs}
        results = list(outputs.values())
        library = self._open_library()
        library.retain()
        try:
            run = self._run_rows if self._threads.count == 1 else self._run_part
            self._threads.each(
                batch,
                lambda rows: run(library, [a[rows] for a in arrays], [r[rows] for r in results]),
            )
        finally:
            library.release()
        return outputs

    def matrix_function(self, output: str, fallback: MatrixFunction) -> MatrixFunction | None:
        """A built-in function of the artifact's own; where there is none, a row through buffers that stay in place."""
        if len(self._inputs) != 1 or self._inputs[0].dtype != "float32" or len(self._inputs[0].shape) != 2:
            return None
        if [spec.name for spec in self._outputs] != [output] or self._outputs[0].dtype != "float32":
            return None
        library = self._open_library()
        library.retain()
        try:
            return self._built_in_function(library, fallback) or self._row_function(library, fallback)
        finally:
            library.release()

    def close(self) -> None:
        """Give the library up; it is unloaded once no call is running and no function of it is left."""
        self._library = None
        for made in tuple(self._functions):
            owner = made()
            if owner is not None:
                owner.close()
        self._functions.clear()
        self._threads.close()
        self._give_up()

    def _built_in_function(self, library: Library, fallback: MatrixFunction) -> MatrixFunction | None:
        shape = _shape(self._outputs[0], 1)
        made = python_function(
            library,
            fallback,
            features=self._inputs[0].shape[1] or 0,
            columns=shape[1] if len(shape) == 2 else 0,
            most=sys.maxsize if self._threads.count == 1 else self._threads.least,
        )
        if made is None or len(shape) > 2:
            return None
        function, owner = made
        self._functions.append(weakref.ref(owner))
        if self._library is None:  # closed meanwhile, perhaps without this one
            owner.close()
        self.binding = "built-in"
        return function

    def _row_function(self, library: Library, fallback: MatrixFunction) -> MatrixFunction:
        """One row through buffers that stay where they are, so that no address is looked up in a call."""
        row = np.zeros(_shape(self._inputs[0], 1), np.float32)
        wanted = np.zeros(_shape(self._outputs[0], 1), np.float32)
        call = library.bind([row], [wanted], 1, _aligned(library.workspace(1)))
        library.retain()
        # A user as long as `call` is there, which a running call sees to: that costs the call nothing.
        weakref.finalize(call, library.release).atexit = False
        lock, shape = threading.Lock(), row.shape

        def run_row(x: Any) -> Array:
            if type(x) is not np.ndarray or x.dtype is not _FLOAT32 or x.shape != shape:
                return fallback(x)
            with lock:
                if self._library is not None:
                    row[...] = x
                    if not call():
                        return wanted.copy()
            return fallback(x)

        return run_row

    def _run_part(self, library: Library, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Run rows as a user of the library: another thread may do so after an interrupt has ended the call."""
        library.retain()
        try:
            self._run_rows(library, inputs, outputs)
        finally:
            library.release()

    def _run_rows(self, library: Library, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        batch = len(inputs[0]) if inputs else 1
        double = are_doubles(inputs, self._inputs)
        workspace = self._take(library.workspace(batch, double=double), batch)
        status = library.run(inputs, outputs, batch, workspace, double=double)
        self._workspaces.append(workspace)
        if status:
            raise EngineFault(f"{self._path!r} failed with the status {status}")

    def _take(self, needed: int, batch: int) -> Array:
        """A workspace that no other call uses, of `needed` bytes at least."""
        try:
            workspace = self._workspaces.pop()
        except IndexError:
            workspace = _aligned(0)
        if needed > workspace.nbytes:
            try:
                workspace = _aligned(needed)
            except (MemoryError, ValueError) as e:
                raise EngineFault(f"{self._path!r} asks for {needed} bytes of memory for {batch} rows") from e
        return workspace

    def _open_library(self) -> Library:
        if self._library is None:
            raise EngineFault(f"{self._path!r} was closed")
        return self._library


def _shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    return (batch, *(size for size in spec.shape[1:] if size is not None))


def _aligned(size: int) -> Array:
    """At least `size` bytes, and at least one, whose address is a multiple of ALIGNMENT."""
    size = max(size, 1)
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]
