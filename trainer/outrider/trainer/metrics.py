"""How well scores fit labels, against always naming the most frequent class of the training rows."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
_EPSILON = 1e-7  # float32 scores reach 0 and 1; the loss stays finite


class Metrics(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Figures on `rows` rows. `auc` is None with more than two classes, or where only one class is present.

    `majority_accuracy` and `majority_log_loss` are those of a model that always gives the training rows' shares.
    """

    rows: int
    accuracy: float
    log_loss: float
    auc: float | None
    majority_accuracy: float
    majority_log_loss: float


def probabilities(scores: Floats) -> NDArray[np.float64]:
    """Scores as a matrix [n, classes]; a vector [n] is the positive class's probability."""
    matrix = np.asarray(scores, dtype=np.float64)
    return np.column_stack([1.0 - matrix, matrix]) if matrix.ndim == 1 else matrix


def predicted(scores: Floats) -> Ints:
    """The index of the predicted class [n]: a score > 0.5 of two, else the most probable."""
    if scores.ndim == 1:
        return (scores > 0.5).astype(np.int64)
    chosen: Ints = np.argmax(scores, axis=1).astype(np.int64)
    return chosen


def accuracy(scores: Floats, labels: Ints) -> float:
    """The share of rows whose predicted class is the label."""
    return float(np.mean(predicted(scores) == labels))


def log_loss(scores: Floats, labels: Ints) -> float:
    """Mean negative log probability of the label, in nats."""
    chosen = probabilities(scores)[np.arange(len(labels)), labels]
    return float(-np.mean(np.log(np.clip(chosen, _EPSILON, 1.0))))


def auc(scores: Floats, labels: Ints) -> float | None:
    """Area under the ROC curve: the probability that a positive row outscores a negative one, ties half."""
    matrix = probabilities(scores)
    if matrix.shape[1] != 2:
        return None
    _, inverse, counts = np.unique(matrix[:, 1], return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = int(np.sum(labels == 1))
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        return None
    return float((np.sum(ranks[labels == 1]) - positives * (positives + 1) / 2) / (positives * negatives))


def evaluate(scores: Floats, labels: Ints, class_shares: NDArray[np.float64]) -> Metrics:
    """All figures. `class_shares` [classes] are the training rows' class shares."""
    constant = np.tile(class_shares, (len(labels), 1))
    return Metrics(
        rows=len(labels),
        accuracy=accuracy(scores, labels),
        log_loss=log_loss(scores, labels),
        auc=auc(scores, labels),
        majority_accuracy=accuracy(constant, labels),
        majority_log_loss=log_loss(constant, labels),
    )
