"""Arrays inside a bundle: `.npy` files, read without pickles and without trusting what they declare."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from outrider.runtime.errors import BadBundleError, BadDataError

Array = NDArray[Any]


def encode_npy(array: Array) -> bytes:
    """The array as a `.npy` file, C-contiguous. Raises BadDataError for objects: text must be of a fixed width."""
    if array.dtype.hasobject:
        raise BadDataError("an array of Python objects cannot be stored", hint="convert text with .astype(str)")
    buffer = io.BytesIO()
    npy_format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode_npy(data: bytes, *, origin: str = "array") -> Array:
    """Parse a `.npy` file whose declared size must be exactly that of its bytes. Raises BadBundleError."""
    buffer = io.BytesIO(data)
    try:
        if npy_format.read_magic(buffer) != (1, 0):
            raise BadBundleError(f"{origin} is an .npy file of an unknown version")
        shape, fortran, dtype = npy_format.read_array_header_1_0(buffer)
        if dtype.hasobject or fortran:
            raise BadBundleError(f"{origin} holds Python objects or Fortran order")
        body = memoryview(data)[buffer.tell() :]
        if math.prod(shape) * dtype.itemsize != len(body):
            raise BadBundleError(f"{origin} declares {shape} of {dtype}, which is not the size of its data")
        return np.frombuffer(body, dtype).reshape(shape).copy() if len(body) else np.empty(shape, dtype)
    except (ValueError, TypeError, OverflowError, MemoryError, RecursionError, KeyError, SyntaxError) as e:
        raise BadBundleError(f"{origin} is not an .npy file: {e}") from e
