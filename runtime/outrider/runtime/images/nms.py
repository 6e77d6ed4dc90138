"""Non-maximum suppression."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def suppress(
    boxes: Floats, scores: Floats, classes: NDArray[np.int64] | None, threshold: float, most: int
) -> NDArray[np.intp]:
    """The places of the boxes that stay, best score first, at most `most`.

    `boxes` [k, 4] of x1, y1, x2, y2; `classes` [k], or None: all are of one. Greedy: the best box stays, and those of
    its class whose intersection over union with it exceeds `threshold` fall; then the best of the rest. Of equal
    scores the first comes first. Boxes without an area overlap nothing.
    """
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, order = order[0], order[1:]
        kept.append(int(best))
        falls = overlaps(boxes[best], boxes[order]) > threshold
        if classes is not None:
            falls &= classes[order] == classes[best]
        order = order[~falls]
    return np.array(kept, np.intp)


def overlaps(box: Floats, others: Floats) -> Floats:
    """The intersection over union of a box [4] with others [k, 4]: [k]; 0 where there is no area."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    union = _area(box[None]) + _area(others) - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def _area(boxes: Floats) -> Floats:
    return np.asarray(np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1))
