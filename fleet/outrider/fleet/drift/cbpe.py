"""Accuracy without labels, from the score histogram alone (confidence-based performance estimation).

A calibrated score says how likely a prediction is right; its mean over the live rows is the expected accuracy. It
sees a change of the inputs that makes the model less sure. It is blind to concept drift: where the same inputs come
to mean something else, the scores do not change, and only labels show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import BadDataError
from outrider.runtime.profile import SCORE_BINS

ScoreKind = Literal["binary", "top"]


class AccuracyEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Expected accuracy over `rows` rows; `error` is the standard error of the realised accuracy about it."""

    accuracy: float
    error: float
    rows: int


def right_by_bin(kind: ScoreKind = "binary") -> NDArray[np.float64]:
    """How likely a prediction is right [32], by the middle of its score bin.

    `binary`: the score is the probability of the positive class, decided at 1/2. `top`: the score is that of the
    predicted class.
    """
    middle = (np.arange(SCORE_BINS) + 0.5) / SCORE_BINS
    right: NDArray[np.float64] = np.maximum(middle, 1 - middle) if kind == "binary" else middle
    return right


def estimate_accuracy(
    scores: Sequence[int] | NDArray[np.int64], *, right: Sequence[float] | NDArray[np.float64] | None = None
) -> AccuracyEstimate:
    """Estimate from a score histogram [32].

    `right` [32]: how likely a prediction in each bin is right, as measured on labelled rows; by default
    `right_by_bin("binary")`, which takes the scores as calibrated. Raises BadDataError on other shapes or no rows.
    """
    counts = np.asarray(scores, np.float64)
    chances = right_by_bin() if right is None else np.asarray(right, np.float64)
    if counts.shape != (SCORE_BINS,) or chances.shape != (SCORE_BINS,):
        raise BadDataError(f"a score histogram has {SCORE_BINS} bins")
    rows = counts.sum()
    if rows <= 0 or counts.min() < 0:
        raise BadDataError("a score histogram needs rows")
    accuracy = float(counts @ chances / rows)
    variance = float(counts @ (chances * (1 - chances))) / rows**2
    return AccuracyEstimate(accuracy=accuracy, error=math.sqrt(max(variance, 0.0)), rows=int(rows))
