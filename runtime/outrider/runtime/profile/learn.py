"""Making a baseline from training rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import BadDataError
from outrider.runtime.profile.baseline import MAX_FEATURES, MAX_ROWS, Baseline, FeatureGrid, Movement
from outrider.runtime.profile.grid import EDGES, LEVELS, SCORE_BINS, count_upto, learn_edges, levels_of, score_bins
from outrider.runtime.profile.layout import Layout
from outrider.runtime.profile.movement import CELLS, moves

# Movements are recorded for spans of 1, 2, 4, ... blocks, up to a quarter of the rows.
_MIN_SPANS = 4
_MIN_SPAN_ROWS = 32
_MIN_SCORES = 4
_SCORE_SLACK = 1e-5


def learn_baseline(
    features: NDArray[np.float32],
    names: Sequence[str],
    scores: NDArray[np.floating[Any]] | None = None,
    *,
    blocks: int | None = None,
) -> Baseline:
    """The baseline of training rows.

    `features`: float32 [n, f], `names`: f distinct names. `scores`: the model's scores in [0, 1] of rows that it
    was *not* fitted on (a model is surer of its own training rows, and live scores would look shifted), any
    number of them; None for a model without scores.

    `blocks`: give it when rows and scores are in order of time and cover the same stretch of it, as the number of
    blocks to cut the rows into, one block at most as long as a window will be (64, say). How far the distributions
    move from block to block is then recorded, and the fleet's drift test allows for that much: hours, weekdays and
    seasons raise no alarm.

    Raises BadDataError on shapes, names or sizes that do not fit.
    """
    _check(features, names, scores, blocks)
    columns = np.array(features.T, np.float32, order="C")
    grids = []
    for name, column in zip(names, columns, strict=True):
        edges, discrete = learn_edges(column)
        padded = np.full((1, EDGES), np.inf, np.float32)
        padded[0, : len(edges)] = edges
        upto = np.zeros((1, LEVELS), np.int64)
        count_upto(column[None, :].copy(), padded, upto)
        counts = levels_of(upto)[0]
        level_counts = np.append(counts[: len(edges)], counts[-1])
        grids.append(
            FeatureGrid(
                name=name,
                discrete=discrete,
                edges=edges.astype("<f4").tobytes(),
                counts=level_counts.astype("<u4").tobytes(),
            )
        )
    histogram: tuple[int, ...] = ()
    if scores is not None:
        histogram = tuple(int(n) for n in np.bincount(score_bins(scores), minlength=SCORE_BINS))
    baseline = Baseline(rows=len(features), features=tuple(grids), scores=histogram)
    if blocks is None:
        return baseline
    movements = _movements(baseline.layout, columns, scores, blocks)
    return Baseline(rows=baseline.rows, features=baseline.features, scores=histogram, movements=movements)


def _check(
    features: NDArray[np.float32], names: Sequence[str], scores: NDArray[np.floating[Any]] | None, blocks: int | None
) -> None:
    if features.ndim != 2 or features.dtype != np.float32:
        raise BadDataError(f"a baseline needs float32 rows [n, f], got {features.dtype} {features.shape}")
    if not 1 <= len(features) <= MAX_ROWS or not 1 <= features.shape[1] <= MAX_FEATURES:
        raise BadDataError(f"a baseline cannot be made of an array of shape {features.shape}")
    if len(names) != features.shape[1] or len(set(names)) != len(names) or not all(names):
        raise BadDataError(f"a baseline of {features.shape[1]} features needs as many distinct names")
    if scores is not None and (scores.ndim != 1 or len(scores) == 0 or len(scores) > MAX_ROWS):
        raise BadDataError(f"scores are one number a row, got an array of shape {scores.shape}")
    if scores is not None and not np.all((scores >= -_SCORE_SLACK) & (scores <= 1 + _SCORE_SLACK)):
        raise BadDataError("scores lie between 0 and 1", hint="a model without such a score has none: scores=None")
    if blocks is not None and blocks < _MIN_SPANS:
        raise BadDataError(f"at least {_MIN_SPANS} blocks are needed to see how rows move with time")


def _movements(
    layout: Layout, columns: NDArray[np.float32], scores: NDArray[np.floating[Any]] | None, blocks: int
) -> tuple[Movement, ...]:
    """Movements over spans of at least 1, 2, 4, ... blocks."""
    rows = columns.shape[1]
    cell = max(rows // blocks, _MIN_SPAN_ROWS) // CELLS
    spans = []
    span = CELLS * cell
    while span * _MIN_SPANS <= rows:
        spans.append(span)
        span *= 2
    if not spans:
        raise BadDataError(f"{rows} rows are too few to see how they move with time")
    moved = [_feature_moves(layout, i, column, cell, len(spans)) for i, column in enumerate(columns)]
    if scores is not None:
        moved.append(_score_moves(scores, cell * len(scores) / rows, len(spans)))
    table = np.array(moved)
    return tuple(Movement(rows=span, moved=tuple(float(x) for x in table[:, j])) for j, span in enumerate(spans))


def _score_moves(scores: NDArray[np.floating[Any]], cell: float, scales: int) -> list[float]:
    """Movements of the score, with steps of as long a time as the features' where both cover the same stretch.

    Held-out rows are often thinned out over it. Where they are a short stretch of their own, their steps are shorter
    in time than the features', and what is found is too much rather than too little.
    """
    if cell < _MIN_SCORES:
        return [1.0] * scales
    return moves(score_bins(scores), SCORE_BINS, int(cell), scales)


def _feature_moves(layout: Layout, feature: int, column: NDArray[np.float32], cell: int, scales: int) -> list[float]:
    """Movements of one feature: of its values among the bins, and of its nulls."""
    nulls = np.isnan(column)
    levels = np.searchsorted(layout.edges[feature], column, side="left")
    bins = layout.bin_of[feature][np.minimum(levels, EDGES - 1)][~nulls].astype(np.intp)
    by_value = moves(bins, int(layout.bins[feature]), cell, scales) if bins.size else [0.0] * scales
    if not nulls.any():
        return by_value
    by_null = moves(nulls.astype(np.intp), 2, cell, scales)
    return [max(a, b) for a, b in zip(by_value, by_null, strict=True)]
