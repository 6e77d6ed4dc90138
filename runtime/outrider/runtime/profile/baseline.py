"""The baseline: how a model's inputs and scores were distributed in training. It travels in the bundle.

The file is MessagePack. Edges are float32 and counts uint32, both little-endian, as bytes.
"""

from __future__ import annotations

import zlib
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from outrider.runtime.errors import BadBundleError
from outrider.runtime.profile.grid import EDGES, SCORE_BINS
from outrider.runtime.profile.layout import Layout, make_layout

MAX_ROWS = 2**32 - 1
MAX_FEATURES = 65_536
MAX_BYTES = 256 * 1024 * 1024
_MIN_EDGES = 3

Count = Annotated[int, Meta(ge=0, le=MAX_ROWS)]
Fraction = Annotated[float, Meta(ge=0, le=1)]


class FeatureGrid(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One feature's grid and the training counts on it.

    `edges`: float32 [k], strictly ascending, the last +inf. `counts`: uint32 [k + 1], one a level, the last
    for NaN. `discrete`: the feature took few distinct values, and a level without a count is an unseen value.
    """

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    discrete: bool
    edges: bytes
    counts: bytes

    def edge_array(self) -> NDArray[np.float32]:
        """Edges [k]."""
        return np.frombuffer(self.edges, "<f4").astype(np.float32)

    def count_array(self) -> NDArray[np.int64]:
        """Counts [k + 1]."""
        return np.frombuffer(self.counts, "<u4").astype(np.int64)


class Movement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far the distributions moved by themselves, in training, between spans of `rows` consecutive rows.

    `moved` holds for each feature, and then for the score where there is one, the largest |F_span - F| over
    spans and bin edges, less what sampling alone explains.
    """

    rows: Annotated[int, Meta(ge=1, le=MAX_ROWS)]
    moved: tuple[Fraction, ...]


class Baseline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Training-time distributions of `rows` rows.

    `scores` is the histogram of the model's scores in 32 bins over the unit interval, or empty where the model
    has no score. `movements` is empty unless the training rows were in order of time; spans ascend.
    """

    v: Literal[1] = 1
    rows: Count
    features: Annotated[tuple[FeatureGrid, ...], Meta(min_length=1, max_length=MAX_FEATURES)]
    scores: tuple[Count, ...] = ()
    movements: tuple[Movement, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Feature names, in the order of the model's columns."""
        return tuple(feature.name for feature in self.features)

    @cached_property
    def layout(self) -> Layout:
        """The grid as arrays, and its 16 bins."""
        return make_layout(
            [(feature.edge_array(), feature.count_array(), feature.discrete) for feature in self.features],
            np.array(self.scores, np.int64),
            self.fingerprint,
        )

    @cached_property
    def fingerprint(self) -> int:
        """CRC-32 of what a window is counted and encoded against: a window names the baseline it belongs to."""
        crc = 0
        for feature in self.features:
            for part in (feature.name.encode(), feature.edges, feature.counts):
                crc = zlib.crc32(part, crc)
        return zlib.crc32(np.array(self.scores, "<u4").tobytes(), crc)


def encode_baseline(baseline: Baseline) -> bytes:
    """The baseline as MessagePack; the same baseline gives the same bytes."""
    return msgspec.msgpack.encode(baseline)


def decode_baseline(data: bytes) -> Baseline:
    """Read and validate a baseline. Raises BadBundleError saying what is wrong."""
    if len(data) > MAX_BYTES:
        raise BadBundleError(f"the baseline is {len(data)} bytes long, more than {MAX_BYTES}")
    try:
        baseline = msgspec.msgpack.decode(data, type=Baseline)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise BadBundleError(f"the baseline does not decode: {e}") from e
    check_baseline(baseline)
    return baseline


def check_baseline(baseline: Baseline) -> None:
    """Check what the types alone do not say. Raises BadBundleError."""
    names = baseline.names
    if len(set(names)) != len(names):
        raise BadBundleError("the baseline names a feature twice")
    if len(baseline.scores) not in (0, SCORE_BINS):
        raise BadBundleError(f"the baseline has {len(baseline.scores)} score bins, not {SCORE_BINS}")
    for feature in baseline.features:
        _check_feature(feature, baseline.rows)
    streams = len(names) + bool(baseline.scores)
    spans = [movement.rows for movement in baseline.movements]
    if any(len(movement.moved) != streams for movement in baseline.movements):
        raise BadBundleError("the baseline's movements do not match its features")
    if any(a >= b for a, b in pairwise(spans)):
        raise BadBundleError("the baseline's movements are not in ascending order")


def _check_feature(feature: FeatureGrid, rows: int) -> None:
    where = f"feature {feature.name!r} of the baseline"
    size = len(feature.edges) // 4
    if len(feature.edges) % 4 or not _MIN_EDGES <= size <= EDGES:
        raise BadBundleError(f"{where} does not have {_MIN_EDGES} to {EDGES} edges")
    if len(feature.counts) != 4 * (size + 1):
        raise BadBundleError(f"{where} has edges and counts that do not match")
    edges = feature.edge_array()
    # Comparisons with NaN are false, so this refuses NaN as well. Only the first edge may be -inf.
    if not (np.all(edges[1:] > edges[:-1]) and edges[-1] == np.inf and np.all(np.isfinite(edges[1:-1]))):
        raise BadBundleError(f"{where} has edges that do not ascend to infinity")
    if int(feature.count_array().sum()) != rows:
        raise BadBundleError(f"{where} has counts that do not add up to {rows} rows")
