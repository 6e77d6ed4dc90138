"""A baseline's grid as arrays: all features side by side, and the 16 bins that are sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.profile.grid import BINS, EDGES, LEVELS


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Arrays over f features; unused places are padded.

    `edges` float32 [f, 255], padded with +inf. `reference` int64 [f, 256]: training counts a level, NaN last.
    `bin_of` int8 [f, 255]: the bin of each level but NaN's. `bins` int64 [f]: bins in use, 1..16.
    `outside` bool [f, 256]: levels never seen in training: beyond the range, or, for a discrete feature, any
    value that it did not take. `cumulative` float64 [f, 15]: the share of non-null training rows at or under
    each bin's upper edge; 1 where the bin is the last one or unused.
    `present` int64 [f]: non-null training rows. `null_share` float64 [f]. `scores` int64 [32] or [0].
    """

    fingerprint: int
    edges: NDArray[np.float32]
    reference: NDArray[np.int64]
    bin_of: NDArray[np.int8]
    bins: NDArray[np.int64]
    outside: NDArray[np.bool_]
    cumulative: NDArray[np.float64]
    present: NDArray[np.int64]
    null_share: NDArray[np.float64]
    discrete: NDArray[np.bool_]
    scores: NDArray[np.int64]

    @property
    def features(self) -> int:
        """The number of features."""
        return len(self.edges)

    @property
    def interior(self) -> NDArray[np.bool_]:
        """Bool [f, 15]: the bin edges in use; at each, 0 < F < 1 in training."""
        used: NDArray[np.bool_] = np.arange(BINS - 1) < (self.bins - 1)[:, None]
        return used

    def coarsen(self, levels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Counts on the grid [f, 256] -> counts in the bins [f, 16], without NaN."""
        flat = np.arange(self.features, dtype=np.int64)[:, None] * BINS + self.bin_of
        # float64 weights are exact up to 2**53 rows.
        sums = np.bincount(flat.ravel(), weights=levels[:, :EDGES].ravel(), minlength=self.features * BINS)
        return sums.astype(np.int64).reshape(self.features, BINS)


def make_layout(
    features: Sequence[tuple[NDArray[np.float32], NDArray[np.int64], bool]],
    scores: NDArray[np.int64],
    fingerprint: int,
) -> Layout:
    """Lay out (edges [k], counts [k + 1], discrete) of each feature."""
    count = len(features)
    edges = np.full((count, EDGES), np.inf, np.float32)
    reference = np.zeros((count, LEVELS), np.int64)
    bin_of = np.zeros((count, EDGES), np.int8)
    outside = np.zeros((count, LEVELS), np.bool_)
    bins = np.ones(count, np.int64)
    cumulative = np.ones((count, BINS - 1))
    discrete = np.array([feature[2] for feature in features], np.bool_)
    for i, (cuts, counts, few) in enumerate(features):
        size = len(cuts)
        edges[i, :size] = cuts
        reference[i, :size] = counts[:-1]
        reference[i, -1] = counts[-1]
        outside[i, [0, size - 1]] = True
        if few:
            outside[i, :size] |= counts[:-1] == 0
        upto = np.cumsum(counts[:-1])
        ends = bin_ends(upto)
        bins[i] = len(ends) + 1
        cumulative[i, : len(ends)] = upto[ends] / max(int(upto[-1]), 1)
        # Levels 0..end belong to the bin of that end, so a level's bin is the number of ends before it.
        bin_of[i] = np.searchsorted(ends, np.arange(EDGES), side="left")
    rows = reference.sum(axis=1)
    return Layout(
        fingerprint=fingerprint,
        edges=edges,
        reference=reference,
        bin_of=bin_of,
        bins=bins,
        outside=outside,
        cumulative=cumulative,
        present=rows - reference[:, -1],
        null_share=reference[:, -1] / np.maximum(rows, 1),
        discrete=discrete,
        scores=scores,
    )


def bin_ends(upto: NDArray[np.int64]) -> NDArray[np.intp]:
    """The last level of every bin but the last, ascending, at most 15; bins of about equal training mass.

    `upto` [k] is the cumulative training count a level. Where heavy values leave bins over, they go to the
    levels farthest from a chosen one, so that rare categories are told apart too.
    """
    total = int(upto[-1])
    steps = np.flatnonzero(np.diff(upto, prepend=0) > 0)
    candidates = steps[upto[steps] < total]
    if candidates.size < BINS:
        return candidates
    mass = upto[candidates]
    chosen = np.zeros(candidates.size, np.bool_)
    for part in range(1, BINS):
        chosen[np.argmin(np.abs(mass * BINS - part * total))] = True
    while chosen.sum() < BINS - 1:
        gaps = np.abs(mass[:, None] - mass[chosen][None, :]).min(axis=1)
        chosen[np.argmax(gaps)] = True
    return candidates[chosen]
