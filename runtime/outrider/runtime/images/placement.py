"""Where a source image lies in the model's input, and the way back for boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.images.plan import ImagePlan

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Placement:
    """A point (x, y) of the source is (x * scale_x + left, y * scale_y + top) in the model's input, both in pixels.

    `source` and `input` are (height, width). `left` and `top` are below 0 where the image was cropped.
    """

    source: tuple[int, int]
    input: tuple[int, int]
    scale_x: float
    scale_y: float
    left: int
    top: int

    @property
    def resized(self) -> tuple[int, int]:
        """(height, width) of the whole source in the scale of the input."""
        return round(self.source[0] * self.scale_y), round(self.source[1] * self.scale_x)

    def to_source(self, boxes: Floats) -> Floats:
        """Boxes [k, 4] of x1, y1, x2, y2 in the input, on the source image, cut at its borders."""
        height, width = self.source
        return np.clip((boxes - self._shift()) / self._scale(), 0, (width, height, width, height))

    def to_input(self, boxes: Floats) -> Floats:
        """Boxes [k, 4] on the source image, in the input; not cut."""
        return np.asarray(boxes * self._scale() + self._shift())

    def _scale(self) -> Floats:
        return np.array((self.scale_x, self.scale_y) * 2)

    def _shift(self) -> Floats:
        return np.array((self.left, self.top) * 2, np.float64)


def place(plan: ImagePlan, height: int, width: int) -> Placement:
    """Where the plan puts an image of this size, in pixels."""
    tall, wide = plan.size
    new_tall, new_wide = _resized(plan, height, width)
    if plan.fit == "letterbox" and plan.align == "corner":
        top = left = 0
    elif plan.fit == "letterbox":
        top, left = (tall - new_tall) // 2, (wide - new_wide) // 2
    else:
        top, left = -round((new_tall - tall) / 2), -round((new_wide - wide) / 2)
    return Placement((height, width), plan.size, new_wide / width, new_tall / height, left, top)


def _resized(plan: ImagePlan, height: int, width: int) -> tuple[int, int]:
    """(height, width) of the whole image before padding or cutting."""
    tall, wide = plan.size
    if plan.fit == "stretch":
        return plan.size
    if plan.fit == "crop" and plan.shorter is not None:
        if height <= width:
            return plan.shorter, plan.shorter * width // height
        return plan.shorter * height // width, plan.shorter
    if plan.fit == "crop":
        ratio = max(tall / height, wide / width)
        return max(tall, round(height * ratio)), max(wide, round(width * ratio))
    ratio = min(tall / height, wide / width)
    return min(tall, max(1, round(height * ratio))), min(wide, max(1, round(width * ratio)))
