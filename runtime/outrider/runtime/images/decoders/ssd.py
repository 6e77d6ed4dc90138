"""Offsets from prior boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import BadDataError
from outrider.runtime.images.decoders.base import Candidates, corners, in_pixels
from outrider.runtime.images.plan import Ssd
from outrider.runtime.images.softmax import activate


def pack_priors(priors: NDArray[Any]) -> bytes:
    """Prior boxes [anchors, 4], of centre x, centre y, width, height as shares, as `Ssd.priors`.

    Raises BadDataError.
    """
    found = np.asarray(priors)
    if found.ndim != 2 or found.shape[1] != 4 or not len(found) or found.dtype.kind not in "fiu":
        raise BadDataError(f"priors are {found.dtype} of shape {found.shape}; expected floats of shape (anchors, 4)")
    if not np.isfinite(found).all():
        raise BadDataError("a prior is not finite")
    return found.astype("<f4").tobytes()


def decode(kind: Ssd, outputs: Mapping[str, NDArray[Any]], size: tuple[int, int], least: float) -> Candidates:
    """The anchors whose best class but the background is at least `least`."""
    scores = activate(kind.activation, outputs[kind.scores].astype(np.float64))
    if kind.background is not None:
        scores = np.delete(scores, kind.background, axis=1)
    best = scores.argmax(axis=1)
    score = scores[np.arange(len(scores)), best]
    kept = np.flatnonzero(score >= least)
    offsets = outputs[kind.locations][kept].astype(np.float64)
    priors = np.frombuffer(kind.priors, "<f4").reshape(-1, 4)[kept].astype(np.float64)
    centres = priors[:, :2] + offsets[:, :2] * kind.variances[0] * priors[:, 2:]
    sides = priors[:, 2:] * np.exp(offsets[:, 2:] * kind.variances[1])
    boxes = corners(np.concatenate([centres, sides], axis=1))
    return Candidates(in_pixels(boxes, "fraction", size), score[kept], best[kept])
