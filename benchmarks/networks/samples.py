"""Inputs of several samples, one sample at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def one_by_one(feeds: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
    """The samples of inputs [n, ...], each with a batch axis of 1, C-contiguous."""
    for i in range(len(next(iter(feeds.values())))):
        yield {name: np.ascontiguousarray(array[i : i + 1]) for name, array in feeds.items()}
