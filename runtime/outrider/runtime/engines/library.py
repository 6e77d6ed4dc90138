"""A native artifact as a loaded library: the C functions of `native_abi.h`, behind cffi or ctypes."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from outrider.runtime.engines.base import Array
from outrider.runtime.errors import EngineFault

Binding = Literal["cffi", "ctypes"]
Call = Callable[[], int]

_REQUIRED = """
uint32_t outrider_abi(void);
size_t outrider_workspace(int64_t batch);
int32_t outrider_run(const void *const *inputs, void *const *outputs, int64_t batch, void *workspace);
"""
# What an artifact may lack: the same for float64 inputs, and functions whose types do not matter here, since only their
# addresses are asked for.
_DOUBLE = """
size_t outrider_workspace_double(int64_t batch);
int32_t outrider_run_double(const void *const *inputs, void *const *outputs, int64_t batch, void *workspace);
"""
_ADDRESSES = (
    "outrider_python_size",
    "outrider_python",
    "outrider_python_close",
    "outrider_python_free",
    "outrider_python_double",
)


class Library(ABC):
    """A loaded artifact behind one of the two ways to call C.

    It is unloaded when every user has released it: the first is the one who loaded it.
    """

    binding: Binding
    doubles: bool
    """Whether the artifact takes float64 inputs where its manifest says float32."""

    def __init__(self, image: _Image, origin: str) -> None:
        self._image = image
        self._origin = origin
        self._users = 1
        self._lock = threading.RLock()  # the garbage collector may release within another's turn

    def abi(self) -> int:
        """The artifact's ABI version."""
        return int(self._abi())

    def workspace(self, batch: int, *, double: bool = False) -> int:
        """Bytes of scratch memory that a batch needs; with `double` one of float64 inputs, which `doubles` allows."""
        return int(self._functions[double][0](batch))

    @abstractmethod
    def bind(
        self,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
        batch: int,
        workspace: Array,
        *,
        double: bool = False,
    ) -> Call:
        """A function of no arguments that runs on these arrays, which it keeps alive, and returns the status."""

    @abstractmethod
    def address(self, name: str) -> int | None:
        """The address of a function that an artifact may lack; None where it does."""

    def _find(self, lib: Any) -> None:
        """Look the functions up, or unload the library. Raises AttributeError where one is missing."""
        try:
            self._abi, self._functions = lib.outrider_abi, _functions(lib)
        except AttributeError:
            self._unload()
            raise
        self.doubles = len(self._functions) > 1

    @abstractmethod
    def _unload(self) -> None: ...

    def run(
        self,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
        batch: int,
        workspace: Array,
        *,
        double: bool = False,
    ) -> int:
        """Run on these arrays; returns the status."""
        return self.bind(inputs, outputs, batch, workspace, double=double)()

    def retain(self) -> None:
        """One user more. Raises EngineFault where there is none left: what was unloaded stays so."""
        with self._lock:
            if not self._users:
                raise EngineFault(f"{self._origin!r} was closed")
            self._users += 1

    def release(self) -> None:
        """One user less; the last one unloads the library."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        self._unload()
        self._image.close()


class _CffiLibrary(Library):
    binding = "cffi"

    def __init__(self, image: _Image, origin: str) -> None:
        import cffi

        super().__init__(image, origin)
        self._ffi = cffi.FFI()
        self._ffi.cdef(_REQUIRED + _DOUBLE + "".join(f"void {name}(void);" for name in _ADDRESSES))
        self._lib = self._ffi.dlopen(image.path, self._ffi.RTLD_NOW)
        self._find(self._lib)

    def bind(
        self,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
        batch: int,
        workspace: Array,
        *,
        double: bool = False,
    ) -> Call:
        buffer = self._ffi.from_buffer
        kept = [buffer(array) for array in (*inputs, *outputs, workspace)]
        ins = self._ffi.new("void *[]", kept[: len(inputs)])
        outs = self._ffi.new("void *[]", kept[len(inputs) : -1])
        call = functools.partial(self._functions[double][1], ins, outs, batch, kept[-1])
        call.__dict__["kept"] = kept
        return call

    def address(self, name: str) -> int | None:
        try:
            return int(self._ffi.cast("uintptr_t", self._ffi.addressof(self._lib, name)))
        except AttributeError:
            return None

    def _unload(self) -> None:
        self._ffi.dlclose(self._lib)


class _CtypesLibrary(Library):
    binding = "ctypes"

    def __init__(self, image: _Image, origin: str) -> None:
        import _ctypes

        super().__init__(image, origin)
        self._lib = ctypes.CDLL(image.path, mode=os.RTLD_NOW)
        self._dlclose = _ctypes.dlclose
        self._find(self._lib)
        self._abi.restype = ctypes.c_uint32
        for workspace, run in self._functions:
            workspace.restype, workspace.argtypes = ctypes.c_size_t, [ctypes.c_int64]
            run.restype = ctypes.c_int32
            run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]

    def bind(
        self,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
        batch: int,
        workspace: Array,
        *,
        double: bool = False,
    ) -> Call:
        ins = (ctypes.c_void_p * len(inputs))(*(array.ctypes.data for array in inputs))
        outs = (ctypes.c_void_p * len(outputs))(*(array.ctypes.data for array in outputs))
        scratch = ctypes.c_void_p(workspace.ctypes.data)
        call = functools.partial(self._functions[double][1], ins, outs, ctypes.c_int64(batch), scratch)
        call.__dict__["kept"] = (inputs, outputs, workspace)
        return call

    def address(self, name: str) -> int | None:
        try:
            return ctypes.cast(getattr(self._lib, name), ctypes.c_void_p).value
        except AttributeError:
            return None

    def _unload(self) -> None:
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


@contextlib.contextmanager
def in_reach(data: bytes, origin: str) -> Iterator[Iterator[str]]:
    """Paths under which the dynamic loader finds a library's bytes: in memory, then in a temporary file.

    For those who load libraries in a way of their own, which they may do until the context ends: what is loaded then
    needs neither. Raises EngineFault where the bytes can be put nowhere.
    """
    with contextlib.ExitStack() as stack:

        def paths() -> Iterator[str]:
            problem: Exception | None = None
            for in_memory in (True, False):
                try:
                    image = _unused_image(data, stack, in_memory=in_memory)
                except (OSError, AttributeError) as e:
                    problem = e
                else:
                    yield image.path
            if problem is not None:
                raise EngineFault(f"the library {origin!r} cannot be loaded: {problem}") from problem

        yield paths()


def _unused_image(data: bytes, stack: contextlib.ExitStack, *, in_memory: bool) -> _Image:
    """An image, closed by the stack, whose path is that of no loaded library: a descriptor's number comes again."""
    import _ctypes

    while True:
        image = _Image(data, in_memory=in_memory)
        stack.callback(image.close)
        try:
            loaded = ctypes.CDLL(image.path, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        except OSError:
            return image
        _ctypes.dlclose(loaded._handle)


def load_library(data: bytes, origin: str, binding: Binding | None) -> Library:
    """Load from memory; where the system forbids that (no /proc, sealed noexec), from a temporary file.

    `origin` names the artifact in errors. `binding` None: cffi where it is installed, else ctypes. Raises EngineFault.
    """
    kind = _binding_class(binding)
    problems = []
    for in_memory in (True, False):
        try:
            image = _Image(data, in_memory=in_memory)
        except (OSError, AttributeError) as e:
            problems.append(str(e))
            continue
        try:
            library = kind(image, origin)
        except (OSError, AttributeError) as e:
            image.close()
            problems.append(str(e))
        else:
            image.unlink()
            return library
    raise EngineFault(f"the library {origin!r} cannot be loaded: {problems[-1]}")


def _functions(library: Any) -> list[tuple[Any, Any]]:
    """The functions `workspace` and `run`, and after them the same for float64 inputs, where there are any.

    Raises AttributeError where the first ones are missing.
    """
    found = [(library.outrider_workspace, library.outrider_run)]
    with contextlib.suppress(AttributeError):
        found.append((library.outrider_workspace_double, library.outrider_run_double))
    return found


def _binding_class(binding: Binding | None) -> type[Library]:
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
