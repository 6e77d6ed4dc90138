"""Arrays inside a bundle: `.npy` files, read without pickles and without trusting what they declare."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from outrider.runtime.errors import BadBundleError, BadDataError

Array = NDArray[Any]

_MAGIC = b"\x93NUMPY\x01\x00"
_PREFIX = len(_MAGIC) + 2  # the header's length follows as a little-endian 16-bit number
# The header exactly as numpy writes it. numpy's own reader evaluates it as Python, with a tokeniser as fallback.
_HEADER = re.compile(
    rb"\{'descr': '([<|][biufU][1-9][0-9]{0,8})', 'fortran_order': False, "
    rb"'shape': \(((?:[0-9]{1,18}(?:,(?: [0-9]{1,18})?)?(?:, [0-9]{1,18}){0,14})?)\), \} *\n"
)


def encode_npy(array: Array) -> bytes:
    """The array as a `.npy` file, C-contiguous. Raises BadDataError for objects: text must be of a fixed width."""
    if array.dtype.kind not in "biufU":
        raise BadDataError(f"an array of {array.dtype} cannot be stored", hint="convert text with .astype(str)")
    buffer = io.BytesIO()
    plain = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    npy_format.write_array(buffer, plain, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def decode_npy(data: bytes, *, origin: str = "array") -> Array:
    """Parse a `.npy` file whose declared size must be exactly that of its bytes. Raises BadBundleError."""
    start = _PREFIX + int.from_bytes(data[len(_MAGIC) : _PREFIX], "little")
    header = _HEADER.fullmatch(data[_PREFIX:start]) if data.startswith(_MAGIC) else None
    if header is None:
        raise BadBundleError(f"{origin} is not an .npy file of version 1 in C order")
    try:
        dtype = np.dtype(header[1].decode("ascii"))
        shape = tuple(int(size) for size in header[2].split(b",") if size.strip())
        if math.prod(shape) * dtype.itemsize != len(data) - start:
            raise BadBundleError(f"{origin} declares {shape} of {dtype}, which is not the size of its data")
        if start == len(data):
            return np.empty(shape, dtype)
        return np.frombuffer(data, dtype, offset=start).reshape(shape).copy()
    except (ValueError, TypeError, OverflowError, MemoryError) as e:
        raise BadBundleError(f"{origin} is not an .npy file: {e}") from e
