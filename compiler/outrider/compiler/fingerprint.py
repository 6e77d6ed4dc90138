"""What arrays hold, in a few bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray


def fingerprint(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    """Names, dtypes, shapes and the SHA-256 of values, a text an array, in the order of the names."""
    return [
        f"{name} {array.dtype} {array.shape} {hashlib.sha256(_bytes(array)).hexdigest()}"
        for name, array in sorted(arrays.items())
    ]


def _bytes(array: NDArray[Any]) -> bytes:
    if array.dtype.hasobject:
        return msgspec.json.encode(array.astype(str).tolist())
    return np.ascontiguousarray(array).tobytes()
