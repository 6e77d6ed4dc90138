"""The drift test of one stream of windows: one device, or the whole fleet merged, with one bundle.

For each feature and each edge of its bins, H0 says that the share F of values at or under the edge is within a
limit of the baseline's. Evidence against it is averaged over the edges and both sides, and mixed over start times;
a feature is paged when it reaches streams/alpha. The share of nulls, the share of values never seen in training
and the model's score are tested in the same way. The limits are made in `limits`; the maths is in `docs/drift.md`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from outrider.fleet.drift.eprocess import e_value, log_evidence_above, log_evidence_below, log_sum
from outrider.fleet.drift.limits import NULLS, OUTSIDE, TESTS, Limits, make_limits
from outrider.fleet.drift.starts import log_cash, log_weights, to_drop
from outrider.runtime.errors import BadDataError
from outrider.runtime.profile import BINS, Baseline, Window

Kind = Literal["values", "nulls", "outside"]

# A start time for every window of at least so many rows; smaller windows are taken together.
START_ROWS = 100


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What had been counted at some moment. `counts`: int64 [streams, 17], deflated. `span`: rows for one device."""

    rows: int = 0
    scored: int = 0
    span: float = 0.0
    counts: bytes


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """The `index`-th possible beginning of a change: its time, and the tally before it."""

    index: int
    since: float
    before: Tally


class MonitorState(msgspec.Struct, frozen=True, kw_only=True):
    """All that the test remembers, bounded in size; encodable with msgspec.

    `threshold`: the e-value of a page. `names`: features, then `(score)` where the model has one. `log_e`: the
    current log e-value of each. `paged`: those already reported, with the time since when.
    """

    v: Literal[1] = 1
    threshold: float
    limits: Limits
    total: Tally
    opened: int = 0
    starts: tuple[Start, ...] = ()
    log_e: tuple[float, ...]
    paged: dict[str, float] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The streams under test."""
        return self.limits.names

    @property
    def evidence(self) -> dict[str, float]:
        """The current log e-value of each stream, for ranking with `ebh.rank`."""
        return dict(zip(self.names, self.log_e, strict=True))


class DriftSignal(msgspec.Struct, frozen=True, kw_only=True):
    """A feature has drifted.

    `since`: start of the window in which the change most likely began, seconds since the epoch. `effect`: the
    largest |F - F0| since then, a share between 0 and 1. `kind`: whether that is in the values' distribution, in
    nulls, or in values never seen in training. `rows`: how many rows since then.
    """

    feature: str
    since: float
    effect: float
    e_value: float
    threshold: float
    kind: Kind
    rows: int


class FeatureMonitor:
    """The test as pure functions: a state and a window give the next state and the new signals."""

    @staticmethod
    def new_state(
        baseline: Baseline,
        *,
        alpha: float = 0.01,
        streams: int | None = None,
        margin: float = 0.015,
        extra: Mapping[str, float] | None = None,
    ) -> MonitorState:
        """The state before any window.

        `alpha`: the chance of ever a false page in all `streams` together (features times devices and the fleet as
        a whole; by default those of this baseline alone). `margin`: a change of a share that does not matter.
        `extra`: more margin for single features, by name; `(score)` names the score. Raises BadDataError.
        """
        limits = make_limits(baseline, alpha=alpha, margin=margin, extra=extra or {})
        count = len(limits.names)
        streams = count if streams is None else streams
        if streams < 1:
            raise BadDataError("there is at least one stream")
        empty = Tally(counts=_deflate(np.zeros((count, TESTS), np.int64)))
        return MonitorState(threshold=streams / alpha, limits=limits, total=empty, log_e=(0.0,) * count)

    @staticmethod
    def update(
        state: MonitorState,
        window: Window,
        start: float | None = None,
        end: float | None = None,
        *,
        sources: int = 1,
    ) -> tuple[MonitorState, list[DriftSignal]]:
        """Take in one window. A feature is signalled once, when its evidence first reaches the threshold.

        Windows come in order of time, each once. `start` and `end` are the window's own unless given. `sources`: how
        many devices are merged in it; where the baseline knows how rows move with time, spans are measured in
        rows of one device. Raises BadDataError when the window belongs to another baseline.
        """
        if window.fingerprint != state.limits.fingerprint:
            raise BadDataError("the window was counted against another baseline")
        start = window.start if start is None else start
        end = window.end if end is None else end
        if sources < 1 or end < start:
            raise BadDataError("a window comes from at least one device and does not end before it starts")
        if window.rows == 0:
            return state, []
        opened, starts = _open(state, start)
        total, counts = _add(state, window, sources)
        logs, shares, rows = _evidence(state.limits, starts, total, counts)
        log_e = log_sum(np.vstack([logs, np.full(logs.shape[1], log_cash(opened))]), axis=0)
        paged = dict(state.paged)
        signals = []
        for i in np.flatnonzero(log_e >= math.log(state.threshold)):
            name = state.names[i]
            if name in paged:
                continue
            best = int(np.argmax(logs[:, i]))
            kind, effect = _largest_change(state.limits, int(i), shares[best, i])
            signal = DriftSignal(
                feature=name,
                since=starts[best].since,
                effect=effect,
                e_value=e_value(float(log_e[i])),
                threshold=state.threshold,
                kind=kind,
                rows=int(rows[best]),
            )
            paged[name] = signal.since
            signals.append(signal)
        after = msgspec.structs.replace(
            state,
            total=total,
            opened=opened,
            starts=starts,
            log_e=tuple(float(x) for x in log_e),
            paged=paged,
        )
        return after, sorted(signals, key=lambda signal: -signal.e_value)


def _open(state: MonitorState, since: float) -> tuple[int, tuple[Start, ...]]:
    """Open a start before this window, unless the last one is too recent; and drop one when there are too many."""
    starts = state.starts
    if starts and state.total.rows - starts[-1].before.rows < START_ROWS:
        return state.opened, starts
    opened = state.opened + 1
    starts = (*starts, Start(index=opened, since=since, before=state.total))
    drop = to_drop([start.index for start in starts], opened)
    return opened, starts if drop is None else starts[:drop] + starts[drop + 1 :]


def _add(state: MonitorState, window: Window, sources: int) -> tuple[Tally, NDArray[np.int64]]:
    counts = _inflate(state.total.counts, len(state.names)) + _tests_of(window, state.limits)
    total = Tally(
        rows=state.total.rows + window.rows,
        scored=state.total.scored + int(window.scores.sum()),
        span=state.total.span + window.rows / sources,
        counts=_deflate(counts),
    )
    return total, counts


def _tests_of(window: Window, limits: Limits) -> NDArray[np.int64]:
    """Successes of every test [streams, 17] in a window: at or under each edge, null, never seen."""
    counts = np.zeros((len(limits.names), TESTS), np.int64)
    features = len(window.bins)
    counts[:features, : BINS - 1] = window.bins.cumsum(axis=1)[:, : BINS - 1]
    counts[:features, NULLS] = window.nulls
    counts[:features, OUTSIDE] = window.outside
    if limits.scored:
        upto = window.scores.cumsum()[list(limits.score_ends)]
        counts[features, : len(upto)] = upto
    return counts


def _evidence(
    limits: Limits, starts: tuple[Start, ...], total: Tally, counts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Weighted log evidence [starts, streams], observed shares [starts, streams, 17], and rows [starts]."""
    streams = len(limits.names)
    before = np.stack([_inflate(start.before.counts, streams) for start in starts])
    hits = counts[None] - before
    rows = np.array([total.rows - start.before.rows for start in starts])
    scored = np.array([total.scored - start.before.scored for start in starts])
    trials = np.repeat(rows[:, None], streams, axis=1)[:, :, None] - hits[:, :, NULLS, None]
    trials = np.repeat(trials, TESTS, axis=2)
    trials[:, :, NULLS] = rows[:, None]
    if limits.scored:
        trials[:, -1, :] = scored[:, None]
    shares = hits / np.maximum(trials, 1)
    scales = [limits.scale_of(total.span - start.before.span) for start in starts]
    logs = np.full((len(starts), streams), -np.inf)
    for i, scale in enumerate(scales):
        if scale is not None:
            logs[i] = _mean_evidence(limits, scale, hits[i], trials[i])
    return logs + log_weights([start.index for start in starts])[:, None], shares, rows


def _mean_evidence(
    limits: Limits, scale: int, hits: NDArray[np.int64], trials: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Log evidence of each stream, averaged over its edges, both sides and the scales."""
    lower, upper = limits.at(scale)
    logs = np.full((2, *hits.shape), -np.inf)
    # Only a share beyond its limit can give evidence above 1; the rest may count as 0, which is never too much.
    above = (upper < 1) & (hits > upper * trials)
    below = (lower > 0) & (hits < lower * trials)
    logs[0][above] = log_evidence_above(hits[above], trials[above], upper[above])
    logs[1][below] = log_evidence_below(hits[below], trials[below], lower[below])
    sides = ((upper < 1).sum(axis=1) + (lower > 0).sum(axis=1)) * max(len(limits.spans), 1)
    mean: NDArray[np.float64] = log_sum(log_sum(logs, axis=0), axis=1) - np.log(np.maximum(sides, 1))
    return mean


def _largest_change(limits: Limits, stream: int, shares: NDArray[np.float64]) -> tuple[Kind, float]:
    """The test of a stream with the largest |F - F0|, by kind, and that change."""
    moved = np.where(limits.active()[stream], np.abs(shares - limits.share_array()[stream]), 0.0)
    test = int(np.argmax(moved))
    kinds: dict[int, Kind] = {NULLS: "nulls", OUTSIDE: "outside"}
    return kinds.get(test, "values"), float(moved[test])


def _deflate(counts: NDArray[np.int64]) -> bytes:
    return zlib.compress(counts.astype("<i8").tobytes(), 1)


def _inflate(counts: bytes, streams: int) -> NDArray[np.int64]:
    return np.frombuffer(zlib.decompress(counts), "<i8").astype(np.int64).reshape(streams, TESTS)
