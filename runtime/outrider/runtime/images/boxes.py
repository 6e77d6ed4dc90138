"""Boxes of the outputs -> detections on the source image."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from outrider.runtime.images import DECODERS
from outrider.runtime.images.decoders.base import Candidates
from outrider.runtime.images.nms import suppress
from outrider.runtime.images.plan import Boxes, Label, kind_of
from outrider.runtime.images.results import Box, Detection, ImageResult
from outrider.runtime.images.topk import name_of

#: (decode, the outputs for one image, the input's (height, width), the least score) -> candidates.
Decoder: TypeAlias = Callable[[Any, Mapping[str, NDArray[Any]], tuple[int, int], float], Candidates]


def apply(step: Boxes, result: ImageResult, labels: tuple[Label, ...]) -> ImageResult:
    """The result with `detections`. Boxes that are not finite, or without an area on the image, are left out."""
    decode: Decoder = pkgutil.resolve_name(DECODERS[kind_of(step.decode)])
    found = decode(step.decode, result.outputs, result.placement.input, step.score_threshold)
    found = _sound(found).best(step.max_candidates)
    found = found.at(_kept(step, found))
    corners = result.placement.to_source(found.boxes)
    names = step.labels or labels
    detections = tuple(
        Detection(box=Box(x1=x1, y1=y1, x2=x2, y2=y2), score=score, class_id=class_id, label=name_of(class_id, names))
        for (x1, y1, x2, y2), score, class_id in zip(
            corners.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True
        )
        if x2 > x1 and y2 > y1
    )
    return msgspec.structs.replace(result, detections=detections)


def _sound(found: Candidates) -> Candidates:
    return found.at(np.flatnonzero(np.isfinite(found.boxes).all(axis=1)))


def _kept(step: Boxes, found: Candidates) -> NDArray[np.intp]:
    if step.iou_threshold is None:
        return np.arange(min(len(found.scores), step.max_detections))
    classes = found.classes if step.class_aware else None
    return suppress(found.boxes, classes, step.iou_threshold, step.max_detections)
