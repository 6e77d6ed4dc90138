"""Non-maximum suppression."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def suppress(boxes: Floats, classes: NDArray[np.int64] | None, threshold: float, most: int) -> NDArray[np.intp]:
    """The places of the boxes that stay, in their order, at most `most`.

    `boxes` [k, 4] of x1, y1, x2, y2, best first; `classes` [k], or None: all are of one. Greedy: the best box stays,
    and those of its class whose intersection over union with it exceeds `threshold` fall; then the best of the rest.
    Boxes without an area overlap nothing.
    """
    areas = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
    order = np.arange(len(boxes))
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, order = order[0], order[1:]
        kept.append(int(best))
        shared = _shared(boxes[best], boxes[order])
        union = areas[best] + areas[order] - shared
        falls = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0) > threshold
        if classes is not None:
            falls &= classes[order] == classes[best]
        order = order[~falls]
    return np.array(kept, np.intp)


def _shared(box: Floats, others: Floats) -> Floats:
    """The area of the intersection of a box [4] with others [k, 4]: [k]."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return np.asarray(np.maximum(sides, 0).prod(axis=1))
