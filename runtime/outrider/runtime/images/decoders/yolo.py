"""Rows of [centre x, centre y, width, height, objectness, classes…], one an anchor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.images.decoders.base import Candidates, corners, in_pixels
from outrider.runtime.images.plan import Yolo
from outrider.runtime.images.softmax import activate


def decode(kind: Yolo, outputs: Mapping[str, NDArray[Any]], size: tuple[int, int], least: float) -> Candidates:
    """The anchors whose objectness times best class is at least `least`."""
    rows = outputs[kind.output]
    scores = activate(kind.activation, rows[:, 4:].astype(np.float64))
    best = scores[:, 1:].argmax(axis=1) if scores.shape[1] > 1 else np.zeros(len(rows), np.int64)
    score = scores[:, 0] * scores[np.arange(len(rows)), 1 + best] if scores.shape[1] > 1 else scores[:, 0]
    kept = np.flatnonzero(score >= least)
    boxes = in_pixels(corners(rows[kept, :4].astype(np.float64)), kind.units, size)
    return Candidates(boxes, score[kept], best[kept])
