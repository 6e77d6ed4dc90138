"""Boxes that the model itself decoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.images.decoders.base import Candidates, in_pixels
from outrider.runtime.images.plan import Decoded


def decode(kind: Decoded, outputs: Mapping[str, NDArray[Any]], size: tuple[int, int], least: float) -> Candidates:
    """The rows whose score is at least `least`, and above 0, since rows of 0 fill up."""
    if len(kind.outputs) == 1:
        rows = outputs[kind.outputs[0]].astype(np.float64)
        boxes, scores, classes = rows[:, :4], rows[:, 4], rows[:, 5]
    else:
        boxes, scores, classes = (outputs[name].astype(np.float64) for name in kind.outputs)
    kept = np.flatnonzero((scores >= least) & (scores > 0) & np.isfinite(classes))
    boxes = boxes[kept] if kind.order == "xyxy" else boxes[kept][:, [1, 0, 3, 2]]
    return Candidates(in_pixels(boxes, kind.units, size), scores[kept], classes[kept].astype(np.int64))
