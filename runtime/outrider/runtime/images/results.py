"""What a session gives for an image."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from outrider.runtime.images.placement import Placement
from outrider.runtime.images.plan import Label

Array = NDArray[Any]


class Box(msgspec.Struct, frozen=True, kw_only=True):
    """Corners on the source image, pixels: 0 is its left or upper border, its width or height the other."""

    x1: float
    y1: float
    x2: float
    y2: float


class Detection(msgspec.Struct, frozen=True, kw_only=True):
    """One object. `class_id` is its number among the classes, `label` their name for it, or that number."""

    box: Box
    score: float
    class_id: int
    label: Label


class Classification(msgspec.Struct, frozen=True, kw_only=True):
    """One class of an image and its value: a probability where the plan says softmax."""

    score: float
    class_id: int
    label: Label


class ImageResult(msgspec.Struct, frozen=True, kw_only=True):
    """All that the bundle's steps make of one image.

    `outputs`: the model's outputs for this image alone, by name, without an axis for images, after `softmax`. `classes`
    and `detections` are None where no step gives them. `placement`: where the image lay in the model's input.
    """

    outputs: dict[str, Array]
    placement: Placement
    classes: tuple[Classification, ...] | None = None
    detections: tuple[Detection, ...] | None = None


def floats(result: ImageResult, name: str) -> NDArray[np.float64]:
    """An output as float64."""
    return result.outputs[name].astype(np.float64)
