"""A window: what was counted between two moments. Integers only, so merging is exact.

On the wire: one version byte, then a zlib stream of the baseline's fingerprint (uint32), start and end (float64
seconds since the epoch), all little-endian, and zigzag varints. Each count is sent as its difference from what
the baseline expects of that many rows, which is near zero for rows in distribution.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import BadDataError, BadMessageError
from outrider.runtime.profile.baseline import Baseline
from outrider.runtime.profile.grid import BINS, SCORE_BINS
from outrider.runtime.profile.layout import Layout
from outrider.runtime.profile.varint import MAX_VARINT_BYTES, decode_varints, encode_varints

MAX_WINDOW_ROWS = 2**48
_VERSION = 1
_HEADER = struct.Struct("<Idd")
_SCALARS = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """Counts of `rows` rows between `start` and `end`, seconds since the epoch, against one baseline.

    `bins` int64 [f, 16]: non-null values a bin; a feature with fewer bins has zeros behind them.
    `nulls` int64 [f]: NaN. `outside` int64 [f]: values (also in a bin) that training never saw: beyond its
    range, infinite, or, for a feature of few distinct values, none of those. `scores` int64 [32].
    `fingerprint` names the baseline.
    """

    fingerprint: int
    start: float
    end: float
    rows: int
    bins: NDArray[np.int64]
    nulls: NDArray[np.int64]
    outside: NDArray[np.int64]
    scores: NDArray[np.int64]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Window):
            return NotImplemented
        mine = (self.fingerprint, self.start, self.end, self.rows)
        return mine == (other.fingerprint, other.start, other.end, other.rows) and all(
            np.array_equal(a, b) for a, b in zip(self._arrays(), other._arrays(), strict=True)
        )

    def __hash__(self) -> int:
        return hash((self.fingerprint, self.start, self.end, self.rows))

    def _arrays(self) -> tuple[NDArray[np.int64], ...]:
        return self.bins, self.nulls, self.outside, self.scores


def merge(a: Window, b: Window) -> Window:
    """Both windows as one: counts add up exactly, the time span covers both. Any order, any grouping.

    Raises BadDataError when they belong to different baselines.
    """
    if a.fingerprint != b.fingerprint or a.bins.shape != b.bins.shape:
        raise BadDataError("windows of different baselines cannot be merged")
    return Window(
        fingerprint=a.fingerprint,
        start=min(a.start, b.start),
        end=max(a.end, b.end),
        rows=a.rows + b.rows,
        bins=a.bins + b.bins,
        nulls=a.nulls + b.nulls,
        outside=a.outside + b.outside,
        scores=a.scores + b.scores,
    )


def encode_window(window: Window, baseline: Baseline) -> bytes:
    """The window's bytes: about 1 KB for 100 features and 1,000 rows in distribution.

    Raises BadDataError when the window belongs to another baseline.
    """
    layout = baseline.layout
    if window.fingerprint != layout.fingerprint or len(window.bins) != layout.features:
        raise BadDataError("the window belongs to another baseline")
    scored = int(window.scores.sum())
    sent = _sent_bins(layout)
    values = np.concatenate(
        [
            np.array([window.rows, window.rows - scored], np.int64),
            window.nulls - _expected_nulls(layout, window.rows),
            window.outside,
            (window.scores - _expected_scores(layout, scored))[: _score_count(layout)],
            (window.bins - _expected_bins(layout, window.rows - window.nulls)).T[sent],
        ]
    )
    body = _HEADER.pack(window.fingerprint, window.start, window.end) + encode_varints(values)
    # Filtered: counts have no repeating strings, and this is 2 % smaller than the default strategy.
    deflate = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_FILTERED)
    return bytes([_VERSION]) + deflate.compress(body) + deflate.flush()


def decode_window(data: bytes, baseline: Baseline) -> Window:
    """Read a window that was counted against `baseline`. Raises BadMessageError; nothing in it is trusted."""
    layout = baseline.layout
    sent = _sent_bins(layout)
    count = _SCALARS + 2 * layout.features + _score_count(layout) + int(sent.sum())
    body = _inflate(data, _HEADER.size + MAX_VARINT_BYTES * count)
    fingerprint, start, end = _HEADER.unpack_from(body)
    if fingerprint != layout.fingerprint:
        raise BadMessageError("the window was counted against another baseline")
    if not (math.isfinite(start) and math.isfinite(end) and start <= end):
        raise BadMessageError("the window's time span is not valid")
    values = decode_varints(body[_HEADER.size :], count)
    if np.any(np.abs(values) > MAX_WINDOW_ROWS) or np.any(values == np.iinfo(np.int64).min):
        raise BadMessageError("a count of the window is absurd")
    rows, unscored = int(values[0]), int(values[1])
    if not 0 <= unscored <= rows:
        raise BadMessageError("the window's row count is not valid")
    cuts = np.cumsum([_SCALARS, layout.features, layout.features, _score_count(layout)])
    _, nulls, outside, scores, bins = np.split(values, cuts)
    nulls = nulls + _expected_nulls(layout, rows)
    present = rows - nulls
    scores = np.pad(scores, (0, SCORE_BINS - len(scores))) + _expected_scores(layout, rows - unscored)
    residuals = np.zeros((BINS, layout.features), np.int64)
    residuals[sent] = bins
    counted = residuals.T + _expected_bins(layout, present)
    # The last bin is not sent: it is what the others leave.
    last = layout.bins - 1
    counted[np.arange(layout.features), last] = 0
    counted[np.arange(layout.features), last] = present - counted.sum(axis=1)
    if min(int(part.min(initial=0)) for part in (nulls, present, outside, scores, counted)) < 0:
        raise BadMessageError("a count of the window is negative")
    if np.any(outside > present) or int(scores.sum()) != rows - unscored:
        raise BadMessageError("the window's counts do not add up")
    return Window(
        fingerprint=fingerprint,
        start=start,
        end=end,
        rows=rows,
        bins=counted,
        nulls=nulls,
        outside=outside.copy(),
        scores=scores,
    )


def _inflate(data: bytes, limit: int) -> bytes:
    if not data or data[0] != _VERSION:
        raise BadMessageError("not a window of a known version")
    stream = zlib.decompressobj()
    try:
        body = stream.decompress(data[1:], limit)
    except zlib.error as e:
        raise BadMessageError(f"the window does not decompress: {e}") from e
    if not stream.eof or stream.unused_data or len(body) < _HEADER.size:
        raise BadMessageError("the window has the wrong length")
    return body


def _sent_bins(layout: Layout) -> NDArray[np.bool_]:
    """Bool [16, f]: the bins whose counts are sent, bin by bin, so that like stands beside like."""
    return np.arange(BINS)[:, None] < (layout.bins - 1)[None, :]


def _score_count(layout: Layout) -> int:
    return len(layout.scores)


def _expected_nulls(layout: Layout, rows: int) -> NDArray[np.int64]:
    return np.rint(layout.null_share * float(rows)).astype(np.int64)


def _expected_bins(layout: Layout, present: NDArray[np.int64]) -> NDArray[np.int64]:
    """Expected counts [f, 16] of `present` [f] values; double arithmetic, the same on every machine."""
    upto = np.rint(layout.cumulative * present[:, None].astype(np.float64)).astype(np.int64)
    return np.diff(upto, axis=1, prepend=0, append=present[:, None])


def _expected_scores(layout: Layout, scored: int) -> NDArray[np.int64]:
    total = int(layout.scores.sum())
    if total == 0:
        return np.zeros(SCORE_BINS, np.int64)
    return np.rint(layout.scores / total * float(scored)).astype(np.int64)
