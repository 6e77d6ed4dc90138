"""How far a share may be from the baseline's before it counts against it.

A test's limits are

    upper = max(F0 + margin + 2.5 s, P+) + 1.25 moved + extra
    lower = min(F0 - margin - 2.5 s, P-) - 1.25 moved - extra

`margin` is the change that does not matter. The reference is a sample itself: s is its standard error, and P+ and P-
are its exact (Clopper-Pearson) limits at a level that holds for all tests of the baseline together; they decide when
the reference is small. `moved` is how far the feature moved by itself in training over spans of that many rows; the
future may move a little farther than the past did. `extra` is set by hand.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from outrider.runtime.errors import BadDataError
from outrider.runtime.profile import BINS, Baseline
from outrider.runtime.profile.layout import bin_ends

# Tests of one stream: 15 edges of bins, the share of nulls, the share of values never seen in training.
NULLS = BINS - 1
OUTSIDE = BINS
TESTS = BINS + 1
SCORE = "(score)"
_REFERENCE_ERRORS = 2.5
_MOVED_FACTOR = 1.25


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The tests of every stream: float64 [streams, 17] as bytes. An unused side has the limit 1 or 0.

    `spans`: spans of rows for which movement is known, ascending; `moved`: float64 [spans, streams] as bytes.
    `score_ends`: the score bins whose upper edges are tested.
    """

    fingerprint: int
    names: tuple[str, ...]
    shares: bytes
    lower: bytes
    upper: bytes
    spans: tuple[int, ...]
    moved: bytes
    score_ends: tuple[int, ...]

    @property
    def scored(self) -> bool:
        """Whether the last stream is the score."""
        return self.names[-1] == SCORE

    def share_array(self) -> NDArray[np.float64]:
        """The baseline's shares [streams, 17]."""
        return _read(self.shares, len(self.names))

    def active(self) -> NDArray[np.bool_]:
        """Bool [streams, 17]: the tests in use."""
        used: NDArray[np.bool_] = (_read(self.upper, len(self.names)) < 1) | (_read(self.lower, len(self.names)) > 0)
        return used

    def scale_of(self, span: float) -> int | None:
        """The position of the longest known span within `span` rows; None: too short to say anything."""
        if not self.spans:
            return 0
        position = int(np.searchsorted(self.spans, span, side="right")) - 1
        return position if position >= 0 else None

    def at(self, scale: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper limits [streams, 17] at a scale."""
        lower, upper = _read(self.lower, len(self.names)), _read(self.upper, len(self.names))
        if not self.spans:
            return lower, upper
        moved = np.frombuffer(self.moved, "<f8").reshape(len(self.spans), -1)[scale][:, None]
        return np.maximum(lower - moved, 0.0), np.minimum(upper + moved, 1.0)


def make_limits(baseline: Baseline, *, alpha: float, margin: float, extra: Mapping[str, float]) -> Limits:
    """The limits of all tests of a baseline. Raises BadDataError on values out of range or unknown names."""
    if not 0 < alpha < 1 or not 0 < margin < 1:
        raise BadDataError("alpha and the margin lie between 0 and 1")
    layout = baseline.layout
    names = baseline.names + ((SCORE,) if baseline.scores else ())
    if len(set(names)) != len(names):
        raise BadDataError(f"a feature cannot be named {SCORE!r}")
    unknown = set(extra) - set(names)
    if unknown or not all(0 <= value <= 1 for value in extra.values()):
        raise BadDataError(f"extra margins lie between 0 and 1 and name features: {sorted(unknown) or dict(extra)}")

    features = layout.features
    shares = np.zeros((len(names), TESTS))
    trials = np.zeros((len(names), TESTS))
    used = np.zeros((len(names), TESTS), np.bool_)
    shares[:features, : BINS - 1] = layout.cumulative
    used[:features, : BINS - 1] = layout.interior
    shares[:features, NULLS] = layout.null_share
    trials[:features] = layout.present[:, None]
    trials[:features, NULLS] = baseline.rows
    used[:features, NULLS] = baseline.rows > 0
    used[:features, OUTSIDE] = layout.present > 0
    score_ends: tuple[int, ...] = ()
    if baseline.scores:
        upto = layout.scores.cumsum()
        score_ends = tuple(int(end) for end in bin_ends(upto)) if upto[-1] else ()
        shares[-1, : len(score_ends)] = upto[list(score_ends)] / max(int(upto[-1]), 1)
        trials[-1] = upto[-1]
        used[-1, : len(score_ends)] = True

    lower, upper = _around(shares, trials, margin, alpha / (2 * max(int(used.sum()), 1)))
    more = np.array([extra.get(name, 0.0) for name in names])[:, None]
    lower = np.where(used, np.maximum(lower - more, 0.0), 0.0)
    upper = np.where(used, np.minimum(upper + more, 1.0), 1.0)
    moved = _MOVED_FACTOR * np.array([movement.moved for movement in baseline.movements], "<f8")
    return Limits(
        fingerprint=layout.fingerprint,
        names=names,
        shares=shares.astype("<f8").tobytes(),
        lower=lower.astype("<f8").tobytes(),
        upper=upper.astype("<f8").tobytes(),
        spans=tuple(movement.rows for movement in baseline.movements),
        moved=moved.astype("<f8").tobytes(),
        score_ends=score_ends,
    )


def _around(
    shares: NDArray[np.float64], trials: NDArray[np.float64], margin: float, level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n = np.maximum(trials, 1.0)
    k = np.rint(shares * n)
    # The range was learned from the same rows, so that none of them is outside: count the two at its ends.
    k[:, OUTSIDE] = np.minimum(k[:, OUTSIDE] + 2, n[:, OUTSIDE])
    smooth = (k + 0.5) / (n + 1.0)
    error = np.sqrt(smooth * (1 - smooth) / n)
    high = np.where(k < n, betaincinv(k + 1, np.maximum(n - k, 0.5), 1 - level), 1.0)
    low = np.where(k > 0, betaincinv(np.maximum(k, 0.5), n - k + 1, level), 0.0)
    reach = margin + _REFERENCE_ERRORS * error
    return np.minimum(shares - reach, low), np.maximum(shares + reach, high)


def _read(data: bytes, streams: int) -> NDArray[np.float64]:
    return np.frombuffer(data, "<f8").reshape(streams, TESTS)
