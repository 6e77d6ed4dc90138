"""The tap that a session calls after each run, so that everything it predicts is counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.profile.counter import Counter

_SCORE_OUTPUTS = ("score", "probabilities")


def scores_of(outputs: Mapping[str, NDArray[Any]]) -> NDArray[np.floating] | None:
    """The score [n] of each row: a 1-D `score`, or the largest of its `probabilities` [n, classes].

    None where the model has neither. Make the baseline's scores with this function too.
    """
    for name in _SCORE_OUTPUTS:
        output = outputs.get(name)
        if output is None or output.dtype.kind != "f":
            continue
        if output.ndim == 1:
            return output
        if output.ndim == 2 and output.shape[1] > 0:
            best: NDArray[np.floating] = output[:, 0] if output.shape[1] == 1 else output.max(axis=1)
            return best
    return None


class ProfileTap:
    """Counts the features and scores of every run of a session."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter

    def observe(self, features: NDArray[np.float32], outputs: Mapping[str, NDArray[Any]]) -> None:
        """Count rows [n, f] and their scores. Raises BadDataError when they do not fit the baseline."""
        self.counter.observe(features, scores_of(outputs) if self.counter.scored else None)
