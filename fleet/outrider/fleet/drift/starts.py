"""When did it begin? A mixture over start times, kept to a bounded number of them.

A change at an unknown time is tested by one e-process for each possible start, the s-th with weight 1/(s(s+1)).
The weights add up to 1, and starts yet to come hold theirs as 1/(s+1) in cash, so the mixture is an e-process too.

A start that is dropped takes its weight with it. That keeps the mixture valid: it only gets smaller. Those left are
spaced about evenly in the logarithm of their age, so a change is never far from a start.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_STARTS = 16


def log_weights(indices: Sequence[int]) -> NDArray[np.float64]:
    """Log weight of each start, by its index s = 1, 2, ..."""
    s = np.asarray(indices, np.float64)
    weights: NDArray[np.float64] = -np.log(s) - np.log1p(s)
    return weights


def log_cash(opened: int) -> float:
    """Log weight of all starts after the first `opened`."""
    return float(-np.log1p(opened))


def to_drop(indices: Sequence[int], opened: int) -> int | None:
    """The position of the start to drop when there are more than MAX_STARTS, or None.

    It is the one whose neighbours are nearest to each other in the logarithm of their age; never the first or the
    newest.
    """
    if len(indices) <= MAX_STARTS:
        return None
    ages = np.log(opened + 1 - np.asarray(indices, np.float64))
    gaps = ages[:-2] - ages[2:]
    return int(np.argmin(gaps)) + 1
