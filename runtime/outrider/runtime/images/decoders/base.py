"""What every decoder gives, and what several need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.images.plan import Units

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """Boxes in the model's input, pixels: `boxes` [k, 4] of x1, y1, x2, y2, `scores` [k], `classes` int64 [k]."""

    boxes: Floats
    scores: Floats
    classes: NDArray[np.int64]

    def at(self, places: NDArray[np.intp]) -> Candidates:
        """Those at these places, in their order."""
        return Candidates(self.boxes[places], self.scores[places], self.classes[places])

    def best(self, most: int) -> Candidates:
        """The best by score, best first; of equal ones the first."""
        return self.at(np.argsort(-self.scores, kind="stable")[:most])


def corners(boxes: Floats) -> Floats:
    """[k, 4] of centre x, centre y, width, height -> [k, 4] of x1, y1, x2, y2."""
    halves = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - halves, boxes[:, :2] + halves], axis=1)


def in_pixels(boxes: Floats, units: Units, size: tuple[int, int]) -> Floats:
    """Boxes [k, 4] of x, y, x, y; `size` is (height, width) of the input."""
    return boxes if units == "pixels" else boxes * (size[1], size[0], size[1], size[0])
