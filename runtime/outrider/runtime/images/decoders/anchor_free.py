"""Four box values and the classes of every anchor, without objectness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.images.decoders.base import Candidates, corners, in_pixels
from outrider.runtime.images.plan import AnchorFree
from outrider.runtime.images.softmax import activate


def decode(kind: AnchorFree, outputs: Mapping[str, NDArray[Any]], size: tuple[int, int], least: float) -> Candidates:
    """The anchors whose best class is at least `least`."""
    columns = outputs[kind.output] if kind.anchors_last else outputs[kind.output].T
    best = columns[4:].argmax(axis=0)
    raw = columns[4 + best, np.arange(columns.shape[1])].astype(np.float64)
    score = activate(kind.activation, raw)
    kept = np.flatnonzero(score >= least)
    boxes = columns[:4, kept].T.astype(np.float64)
    boxes = boxes if kind.form == "xyxy" else corners(boxes)
    return Candidates(in_pixels(boxes, kind.units, size), score[kept], best[kept])
