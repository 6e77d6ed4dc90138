"""The engine of WebAssembly artifacts: a module of the ABI in `wasm_abi.h`, compiled and run by Wasmtime."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from outrider.runtime.bundle.manifest import ArtifactEntry, Signature, TensorSpec
from outrider.runtime.engines.base import Array, Engine, are_doubles, numpy_dtype, tensors
from outrider.runtime.errors import EngineFault, EngineMissingError, TargetMismatchError

ALIGNMENT = 64  # bytes, of the workspace and of every array
PAGE = 1 << 16  # bytes, of linear memory
ADDRESSES = 1 << 32
PART_BYTES = 16 << 20  # of inputs and outputs in one call: memory never shrinks, so longer batches run in parts


class WasmEngine(Engine):
    """Runs a WebAssembly artifact, which reaches nothing beyond its own memory.

    Arrays are copied into that memory and back, a long batch in parts. Calls from several threads are safe and run
    one after the other.
    """

    binding = "wasmtime"

    def __init__(self, module: _Module, entry: ArtifactEntry, signature: Signature) -> None:
        self._module: _Module | None = module
        self.doubles = module.has("outrider_workspace_double") and module.has("outrider_run_double")
        self._path = entry.path
        self._inputs = tensors(entry.inputs, signature.inputs)
        self._outputs = tensors(entry.outputs, signature.outputs)
        self._lock = threading.Lock()

    @classmethod
    def open(cls, entry: ArtifactEntry, data: bytes, signature: Signature, *, threads: int = 1) -> WasmEngine:
        """Compile the module and check its ABI."""
        del threads  # an instance has one memory
        module = _Module(data, entry.path)
        found = module.call("outrider_abi")
        if found != entry.abi:
            raise TargetMismatchError(
                f"{entry.path!r} has native ABI {found}, the manifest says {entry.abi}", reason="abi"
            )
        return cls(module, entry, signature)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a batch; an empty one gives empty outputs without a call."""
        given = [inputs[spec.name] for spec in self._inputs]
        batch = given[0].shape[0] if given else 1
        outputs = {spec.name: np.empty(_shape(spec, batch), numpy_dtype(spec.dtype)) for spec in self._outputs}
        made = list(outputs.values())
        suffix = "_double" if are_doubles(given, self._inputs) else ""
        with self._lock:
            if self._module is None:
                raise EngineFault(f"{self._path!r} was closed")
            for part in _parts(batch, sum(array.nbytes for array in (*given, *made))):
                rows = part.stop - part.start
                pieces = [array[part] for array in given], [array[part] for array in made]
                status = self._module.run(suffix, *pieces, rows)
                if status:
                    raise EngineFault(f"{self._path!r} failed with the status {status}")
        return outputs

    def close(self) -> None:
        """Drop the module and its memory, once no call is running."""
        with self._lock:
            self._module = None


class _Module:
    """A compiled module and its instance, which a trap replaces."""

    def __init__(self, data: bytes, path: str) -> None:
        try:
            import wasmtime
        except (ImportError, OSError, RuntimeError) as e:  # the package is there, its library for this machine is not
            raise EngineMissingError(
                f"WebAssembly artifacts need the package wasmtime, which cannot be loaded here: {e}",
                hint="pip install wasmtime",
                reason="engine",
            ) from e
        self._wasmtime = wasmtime
        # The last two for functions and globals of another type than the ABI's.
        self._faults = (wasmtime.WasmtimeError, wasmtime.Trap, TypeError, ValueError)
        self._path = path
        try:
            self._engine = wasmtime.Engine()
            self._compiled = wasmtime.Module(self._engine, data)
        except wasmtime.WasmtimeError as e:
            raise EngineFault(f"Wasmtime cannot compile {path!r}: {e}") from e
        self._renew()

    def has(self, name: str) -> bool:
        """Whether the module exports a function of that name."""
        return isinstance(self._exports.get(name), self._wasmtime.Func)

    def call(self, name: str, *arguments: int) -> int:
        """Call a function; its result is taken as unsigned. Raises EngineFault for a trap."""
        function = self._export(name, self._wasmtime.Func)
        try:
            return int(function(self._store, *arguments)) % ADDRESSES
        except self._faults as e:
            self._renew()
            raise EngineFault(f"{self._path!r} failed: {e}") from e

    def run(self, suffix: str, inputs: Sequence[Array], outputs: Sequence[Array], batch: int) -> int:
        """Lay all out above what is the module's own, copy in, run, copy out. Returns the status.

        `suffix` is that of the functions' names: `_double` for float64 inputs.
        """
        arrays = (*inputs, *outputs)
        pointers = 4 * len(arrays)
        sizes = [*(array.nbytes for array in arrays), pointers, self.call(f"outrider_workspace{suffix}", batch)]
        *places, table, workspace, end = _places(self._heap_base(), sizes)
        self._reserve(end)
        start = self._memory_start()
        for place, array in zip((table, *places), (np.array(places, "<u4"), *inputs), strict=False):
            ctypes.memmove(start + place, array.ctypes.data, array.nbytes)
        ins, outs = table, table + 4 * len(inputs)
        status = self.call(f"outrider_run{suffix}", _signed(ins), _signed(outs), batch, _signed(workspace))
        start = self._memory_start()
        for place, array in zip(places[len(inputs) :], outputs, strict=True):
            ctypes.memmove(array.ctypes.data, start + place, array.nbytes)
        return status

    def _renew(self) -> None:
        """A fresh instance. Raises EngineFault for a module that needs imports."""
        self._store = self._wasmtime.Store(self._engine)
        try:
            self._exports = self._wasmtime.Instance(self._store, self._compiled, []).exports(self._store)
        except self._faults as e:
            raise EngineFault(f"Wasmtime cannot instantiate {self._path!r}: {e}") from e

    def _export(self, name: str, kind: type[Any]) -> Any:
        found = self._exports.get(name)
        if not isinstance(found, kind):
            raise EngineFault(f"the module {self._path!r} does not export {name}")
        return found

    def _memory(self) -> Any:
        return self._export("memory", self._wasmtime.Memory)

    def _heap_base(self) -> int:
        base = self._export("__heap_base", self._wasmtime.Global).value(self._store)
        if not isinstance(base, int):
            raise EngineFault(f"the module {self._path!r} does not export __heap_base as an address")
        return base % ADDRESSES

    def _memory_start(self) -> int:
        """Where linear memory begins in this process. It moves when the memory grows."""
        return ctypes.addressof(self._memory().data_ptr(self._store).contents)

    def _reserve(self, end: int) -> None:
        """Grow the memory to `end` bytes at least."""
        memory = self._memory()
        missing = end - memory.data_len(self._store)
        if missing > 0:
            try:
                memory.grow(self._store, -(-missing // PAGE))
            except self._faults as e:
                raise EngineFault(f"{self._path!r} asks for {end} bytes of memory: {e}") from e


def _parts(batch: int, size: int) -> Iterator[slice]:
    """Parts of nearly equal length, of at most about PART_BYTES each, of a batch of `size` bytes; none of no rows.

    Equal, since a short last part would go to the artifact's kernel for single rows.
    """
    count = min(batch, max(1, -(-size // PART_BYTES)))
    for i in range(count):
        yield slice(batch * i // count, batch * (i + 1) // count)


def _places(base: int, sizes: Sequence[int]) -> list[int]:
    """The aligned addresses of blocks of these sizes, one after the other from `base`, and where the last one ends."""
    places = [_aligned(base)]
    for size in sizes:
        places.append(_aligned(places[-1] + size))
    return places


def _aligned(address: int) -> int:
    return -(-address // ALIGNMENT) * ALIGNMENT


def _signed(address: int) -> int:
    """An address as the i32 that calls take."""
    return address - ADDRESSES if address >= ADDRESSES // 2 else address


def _shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    return (batch, *(size for size in spec.shape[1:] if size is not None))
