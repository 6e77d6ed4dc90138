"""The classes of an image, best first."""

from __future__ import annotations

import msgspec
import numpy as np

from outrider.runtime.images.plan import Label, TopK
from outrider.runtime.images.results import Classification, ImageResult, floats


def apply(step: TopK, result: ImageResult, labels: tuple[Label, ...]) -> ImageResult:
    """The result with `classes`. Of equal values the first class comes first; NaN comes last."""
    values = floats(result, step.output).reshape(-1)
    best = np.argsort(-values, kind="stable")[: step.k]
    found = tuple(
        Classification(score=float(values[i]), class_id=int(i), label=name_of(int(i), step.labels or labels))
        for i in best
    )
    return msgspec.structs.replace(result, classes=found)


def name_of(class_id: int, labels: tuple[Label, ...]) -> Label:
    """The label of a class, or its number where it has none."""
    return labels[class_id] if 0 <= class_id < len(labels) else class_id
