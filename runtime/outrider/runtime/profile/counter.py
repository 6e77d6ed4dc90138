"""Counting live rows on the baseline's grid.

Rows are appended to a ring and counted a block at a time, so that a single row costs an append, and a batch is
counted by a sort and a search a feature. Blocks of 512 rows stay in the first-level cache.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import BadDataError
from outrider.runtime.profile.baseline import Baseline
from outrider.runtime.profile.grid import LEVELS, SCORE_BINS, count_upto, levels_of, score_bins
from outrider.runtime.profile.window import Window

BLOCK_ROWS = 512


class Counter:
    """Counts rows of one baseline; `take` hands out what was counted since the last `take`. Thread-safe.

    Scores are counted only where the baseline has a score histogram.
    """

    def __init__(self, baseline: Baseline, *, block_rows: int = BLOCK_ROWS) -> None:
        if block_rows < 1:
            raise BadDataError("a block holds at least one row")
        layout = baseline.layout
        self._layout = layout
        self._features = layout.features
        self._lock = threading.Lock()
        self._block_rows = block_rows
        self._ring = np.empty((block_rows, layout.features), np.float32)
        self._ring_scores: list[float] = []
        self._fill = 0
        self._rows = 0
        self._scored = len(layout.scores) > 0
        self._upto = np.zeros((layout.features, LEVELS), np.int64)
        self._scores = np.zeros(SCORE_BINS, np.int64)

    @property
    def scored(self) -> bool:
        """Whether the baseline has a score histogram, so that scores are counted."""
        return self._scored

    @property
    def rows(self) -> int:
        """Rows since the last `take`."""
        with self._lock:
            return self._rows + self._fill

    def observe(self, features: NDArray[np.float32], scores: NDArray[np.floating] | None = None) -> None:
        """Count float32 rows [n, f], and their scores [n]. Raises BadDataError on another shape."""
        shape = features.shape
        if len(shape) != 2 or shape[1] != self._features:
            raise BadDataError(f"expected rows of {self._features} features, got an array of shape {shape}")
        rows = shape[0]
        if not self._scored:
            scores = None
        elif scores is not None and scores.shape != (rows,):
            raise BadDataError(f"expected {rows} scores, got an array of shape {scores.shape}")
        with self._lock:
            if rows != 1:
                self._extend(features, scores)
                return
            self._ring[self._fill] = features
            self._fill += 1
            if scores is not None:
                self._ring_scores.append(scores.item())
            if self._fill == self._block_rows:
                self._flush()

    def take(self, start: float, end: float) -> Window:
        """Everything counted since the last `take`, as the window from `start` to `end` (seconds)."""
        layout = self._layout
        with self._lock:
            self._flush()
            upto, scores, rows = self._upto, self._scores, self._rows
            self._upto = np.zeros_like(upto)
            self._scores = np.zeros_like(scores)
            self._rows = 0
        levels = levels_of(upto)
        return Window(
            fingerprint=layout.fingerprint,
            start=start,
            end=end,
            rows=rows,
            bins=layout.coarsen(levels),
            nulls=levels[:, -1].copy(),
            outside=np.where(layout.outside, levels, 0).sum(axis=1),
            scores=scores,
        )

    def _extend(self, features: NDArray[np.float32], scores: NDArray[np.floating] | None) -> None:
        done, rows = 0, len(features)
        while done < rows:
            part = min(rows - done, self._block_rows - self._fill)
            block = features[done : done + part]
            if part == self._block_rows:
                self._count(block)
            else:
                self._ring[self._fill : self._fill + part] = block
                self._fill += part
            done += part
            if self._fill == self._block_rows:
                self._flush()
        if scores is not None:
            self._count_scores(scores)

    def _flush(self) -> None:
        if self._fill:
            self._count(self._ring[: self._fill])
            self._fill = 0
        if self._ring_scores:
            self._count_scores(np.array(self._ring_scores))
            self._ring_scores.clear()

    def _count(self, block: NDArray[np.float32]) -> None:
        columns = np.array(block.T, np.float32, order="C")
        count_upto(columns, self._layout.edges, self._upto)
        self._rows += len(block)

    def _count_scores(self, scores: NDArray[np.floating]) -> None:
        self._scores += np.bincount(score_bins(scores), minlength=SCORE_BINS)
