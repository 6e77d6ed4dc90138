"""The shortest way from Python into an artifact: a built-in function that the artifact makes (`python_call.h`).

It is there where the interpreter is a CPython with its global lock and numpy's arrays look as they have since 1.0,
which is checked once. Elsewhere, and for artifacts that were built without it, calls go through cffi or ctypes.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
import sysconfig
from collections.abc import Callable
from typing import Any

import numpy as np

from outrider.runtime.engines.base import Array, MatrixFunction
from outrider.runtime.engines.library import Library

# In the order of `python_t` in python_call.h.
_FUNCTIONS = (
    "PyCFunction_NewEx",
    "PyByteArray_AsString",
    "PyObject_CallOneArg",
    "Py_IncRef",
    "Py_DecRef",
    "PyEval_SaveThread",
    "PyEval_RestoreThread",
    "PyErr_Clear",
    "PyMem_RawMalloc",
    "PyMem_RawFree",
)
_ARRAY_ABIS = (0x01000009, 0x02000000)  # numpy 1 and 2
_GET_ABI, _NEW_FROM_DESCR = 0, 94  # places in numpy's table of functions
_PLAIN = 0x0101  # flags of a C-contiguous, aligned array
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_POINTER = ctypes.sizeof(ctypes.c_void_p)


class _Array(ctypes.Structure):
    """The head of an array, as `array_t` in python_call.h."""

    _fields_ = (
        ("references", ctypes.c_ssize_t),
        ("type", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("dimensions", ctypes.c_int),
        ("shape", ctypes.POINTER(ctypes.c_ssize_t)),
        ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
        ("base", ctypes.c_void_p),
        ("dtype", ctypes.c_void_p),
        ("flags", ctypes.c_int),
    )


class CallOwner:
    """What lives as long as the function that it belongs to: its state, its fallback, and the library it is in."""

    def __init__(self, library: Library, fallback: Callable[[Any], Array]) -> None:
        self._free = _function(library, "outrider_python_free", None, ctypes.py_object)
        self._close = _function(library, "outrider_python_close", None, ctypes.py_object)
        self.fallback = fallback
        self.state = bytearray(_function(library, "outrider_python_size", ctypes.c_size_t)())
        library.retain()
        self._library = library

    def close(self) -> None:
        """From now on every call goes to the fallback."""
        self._close(self.state)

    def __del__(self) -> None:
        self._free(self.state)
        self._library.release()


def python_function(
    library: Library, fallback: Callable[[Any], Array], *, features: int, columns: int, most: int
) -> tuple[MatrixFunction, CallOwner] | None:
    """A built-in function float32 [n, features] -> float32 [n, columns], or [n] where `columns` is 0; and its owner.

    It takes float64 [n, features] too where the artifact does. Arguments of any other kind, and more than `most` rows,
    go to `fallback`, which must not keep the function alive. None where the artifact or the interpreter has no such
    function.
    """
    table = _interpreter()
    if table is None or library.address("outrider_python") is None:
        return None
    owner = CallOwner(library, fallback)
    sizes = (ctypes.c_ssize_t,) * 3
    make = _function(
        library,
        "outrider_python",
        ctypes.py_object,
        *(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.py_object, *sizes),
    )
    pointers = (ctypes.c_void_p * len(table))(*table)
    made: MatrixFunction = make(owner.state, ctypes.addressof(pointers), owner, fallback, features, columns, most)
    if library.doubles and library.address("outrider_python_double") is not None:
        _function(library, "outrider_python_double", None, ctypes.py_object, ctypes.py_object)(owner.state, _FLOAT64)
    return made, owner


def _function(library: Library, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """A function of the artifact, called with the interpreter's lock held."""
    address = library.address(name)
    assert address is not None
    return ctypes.PYFUNCTYPE(result, *arguments)(address)


@functools.cache
def _interpreter() -> tuple[int, ...] | None:
    """The addresses that python_call.h asks for, in its order; None where this interpreter or numpy is another kind."""
    plain_objects = sys.implementation.name == "cpython" and object.__basicsize__ == 2 * _POINTER
    if not plain_objects or sysconfig.get_config_var("Py_GIL_DISABLED") or not _arrays_are_plain():
        return None
    try:
        functions = [_address(getattr(ctypes.pythonapi, name)) for name in _FUNCTIONS]
        new_array = _new_array()
    except (AttributeError, ImportError, ValueError):
        return None
    return (*functions, new_array, id(np.ndarray), id(_FLOAT32)) if new_array else None


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _arrays_are_plain() -> bool:
    """Whether an array's fields are where python_call.h reads them."""
    rows = np.zeros((3, 5), np.float32)
    found = _Array.from_address(id(rows))
    return bool(
        found.type == id(np.ndarray)
        and found.data == rows.ctypes.data
        and found.dimensions == 2
        and found.dtype == id(rows.dtype) == id(_FLOAT32)
        and found.flags & _PLAIN == _PLAIN
        and found.shape[:2] == [3, 5]
    )


def _new_array() -> int | None:
    """The address of PyArray_NewFromDescr; None for a numpy of an unknown ABI."""
    core = "numpy.core" if np.__version__.startswith("1.") else "numpy._core"
    capsule = importlib.import_module(f"{core}._multiarray_umath")._ARRAY_API
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    table = ctypes.cast(pointer(capsule, None), ctypes.POINTER(ctypes.c_void_p))
    abi = ctypes.PYFUNCTYPE(ctypes.c_uint)(table[_GET_ABI] or 0)()
    return table[_NEW_FROM_DESCR] if abi in _ARRAY_ABIS else None
