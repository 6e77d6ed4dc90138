"""The gate: whether a candidate takes the champion's place. Pure: scores and labels in, a decision out."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from outrider.trainer import metrics
from outrider.trainer.metrics import Floats, Ints
from outrider.trainer.recipe import GateSettings


class Decision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the gate decided on `rows` held-out rows, and why.

    `gain` is positive where the candidate is better. `candidate_right` and `champion_right` count the rows that only
    the one or only the other classified correctly; `p_value` is the chance of so uneven a split if both were equally
    good (two-sided sign test).
    """

    promote: bool
    reason: str
    metric: str
    candidate: float
    champion: float
    gain: float
    min_gain: float
    rows: int
    candidate_right: int
    champion_right: int
    p_value: float


def decide(candidate: Floats, champion: Floats, labels: Ints, settings: GateSettings) -> Decision:
    """Compare class probabilities of the same rows: [n] of the positive class, or [n, classes].

    The candidate is promoted where its metric is better by at least `min_gain`, on at least `min_rows` rows, and
    where it exists at all: without rows of both classes there is no AUC, so nothing is promoted by it.
    """
    ours, theirs = _value(settings.metric, candidate, labels), _value(settings.metric, champion, labels)
    sign = -1.0 if settings.metric == "log_loss" else 1.0
    gain = sign * (ours - theirs)
    right, wrong = _only_one_right(candidate, champion, labels)
    promote, reason = _judge(settings, ours, theirs, gain, len(labels))
    return Decision(
        promote=promote,
        reason=reason,
        metric=settings.metric,
        candidate=ours,
        champion=theirs,
        gain=gain,
        min_gain=settings.min_gain,
        rows=len(labels),
        candidate_right=right,
        champion_right=wrong,
        p_value=sign_test(right, wrong),
    )


def sign_test(ours: int, theirs: int) -> float:
    """Two-sided p-value of `ours` against `theirs` wins where each is as likely: a binomial tail at one half."""
    n, k = ours + theirs, min(ours, theirs)
    if n == 0:
        return 1.0
    log_half = n * math.log(0.5)
    tail = math.fsum(
        math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + log_half) for i in range(k + 1)
    )
    return min(1.0, 2.0 * tail)


def _judge(settings: GateSettings, ours: float, theirs: float, gain: float, rows: int) -> tuple[bool, str]:
    compared = f"{settings.metric} {ours:.4f} against the champion's {theirs:.4f} on {rows} held-out rows"
    if rows < settings.min_rows:
        return False, f"{compared}: fewer than the {settings.min_rows} rows asked for"
    if math.isnan(gain):
        return False, f"{settings.metric} cannot be computed on {rows} held-out rows of one class"
    if gain < settings.min_gain:
        return False, f"{compared}: a gain of {gain:+.4f}, less than the {settings.min_gain:.4f} asked for"
    return True, f"{compared}: a gain of {gain:+.4f}"


def _value(metric: str, scores: Floats, labels: Ints) -> float:
    if metric == "accuracy":
        return metrics.accuracy(scores, labels)
    if metric == "log_loss":
        return metrics.log_loss(scores, labels)
    area = metrics.auc(scores, labels)
    return math.nan if area is None else area


def _only_one_right(candidate: Floats, champion: Floats, labels: Ints) -> tuple[int, int]:
    ours: NDArray[np.bool_] = metrics.predicted(candidate) == labels
    theirs: NDArray[np.bool_] = metrics.predicted(champion) == labels
    return int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))
