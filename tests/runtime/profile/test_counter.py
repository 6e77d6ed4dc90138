"""Counting: the same as plain numpy, however the rows arrive."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.runtime.errors import BadDataError
from outrider.runtime.profile import (
    BINS,
    SCORE_BINS,
    Baseline,
    Counter,
    ProfileTap,
    learn_baseline,
    score_bin,
    scores_of,
)
from outrider.runtime.profile.grid import EDGES

ROWS = 3000


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    rng = np.random.default_rng(1)
    return learn_baseline(mixed(rng, ROWS), ["normal", "code", "gaps", "constant"], rng.random(ROWS))


def mixed(rng: np.random.Generator, rows: int) -> np.ndarray:
    features = np.stack(
        [rng.normal(size=rows), rng.integers(0, 9, rows), rng.exponential(size=rows), np.full(rows, 3.0)], 1
    ).astype(np.float32)
    features[rng.random(rows) < 0.1, 2] = np.nan
    return features


def wild(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Rows with everything that can be in a float32."""
    features = mixed(rng, rows) * rng.choice([1, 1, 1, 40], (rows, 4)).astype(np.float32)
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38], np.float32)
    where = rng.random(features.shape) < 0.2
    features[where] = rng.choice(special, int(where.sum()))
    return features


def plain(baseline: Baseline, features: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, ...]:
    """The counts, value by value."""
    bins = np.zeros((features.shape[1], BINS), np.int64)
    nulls, outside = np.zeros(features.shape[1], np.int64), np.zeros(features.shape[1], np.int64)
    layout = baseline.layout
    for j, feature in enumerate(baseline.features):
        edges, counts = feature.edge_array(), feature.count_array()
        for value in features[:, j]:
            if np.isnan(value):
                nulls[j] += 1
                continue
            level = next(i for i, edge in enumerate(edges) if value <= edge)
            bins[j, layout.bin_of[j, level]] += 1
            low_or_high = level in (0, len(edges) - 1)
            outside[j] += low_or_high or (feature.discrete and counts[level] == 0)
    histogram = np.zeros(SCORE_BINS, np.int64)
    for score in scores:
        histogram[score_bin(float(score))] += 1
    return bins, nulls, outside, histogram


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    parts=st.lists(st.sampled_from([0, 1, 1, 1, 2, 7, 15, 16, 17, 40]), max_size=12),
    block_rows=st.sampled_from([1, 2, 16, 512]),
)
def test_any_split_counts_as_plain_numpy(baseline: Baseline, seed: int, parts: list[int], block_rows: int) -> None:
    rng = np.random.default_rng(seed)
    rows = sum(parts)
    features, scores = wild(rng, rows), rng.random(rows)
    counter = Counter(baseline, block_rows=block_rows)
    done = 0
    for part in parts:
        counter.observe(features[done : done + part], scores[done : done + part])
        done += part
    assert counter.rows == rows
    window = counter.take(5.0, 6.0)
    expected = plain(baseline, features, scores)
    for got, want in zip((window.bins, window.nulls, window.outside, window.scores), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    assert (window.rows, window.start, window.end) == (rows, 5.0, 6.0)
    assert counter.rows == 0
    assert counter.take(6.0, 7.0).rows == 0


def test_features_are_not_changed_and_may_be_strided(baseline: Baseline) -> None:
    rng = np.random.default_rng(2)
    wide = rng.normal(size=(600, 8)).astype(np.float32)
    view = wide[:, ::2]
    before = wide.copy()
    one, other = Counter(baseline), Counter(baseline)
    one.observe(view)
    other.observe(np.ascontiguousarray(view))
    np.testing.assert_array_equal(wide, before)
    assert one.take(0, 1) == other.take(0, 1)


def test_threads_lose_nothing(baseline: Baseline) -> None:
    counter = Counter(baseline, block_rows=64)
    rng = np.random.default_rng(4)
    features, scores = mixed(rng, 4000), rng.random(4000)
    windows = []
    stop = threading.Event()

    def take() -> None:
        while not stop.is_set():
            windows.append(counter.take(0, 1))

    def feed(part: int) -> None:
        for i in range(part, 4000, 4):
            counter.observe(features[i : i + 1], scores[i : i + 1])

    taker = threading.Thread(target=take)
    feeders = [threading.Thread(target=feed, args=(part,)) for part in range(4)]
    for thread in (taker, *feeders):
        thread.start()
    for thread in feeders:
        thread.join()
    stop.set()
    taker.join()
    windows.append(counter.take(0, 1))
    expected = plain(baseline, features, scores)
    np.testing.assert_array_equal(sum(window.bins for window in windows), expected[0])
    np.testing.assert_array_equal(sum(window.scores for window in windows), expected[3])
    assert sum(window.rows for window in windows) == 4000


def test_wrong_shapes_are_refused_by_name(baseline: Baseline) -> None:
    counter = Counter(baseline)
    with pytest.raises(BadDataError, match="4 features"):
        counter.observe(np.zeros((2, 3), np.float32))
    with pytest.raises(BadDataError, match="4 features"):
        counter.observe(np.zeros(4, np.float32))
    with pytest.raises(BadDataError, match="2 scores"):
        counter.observe(np.zeros((2, 4), np.float32), np.zeros(3))
    with pytest.raises(BadDataError):
        Counter(baseline, block_rows=0)
    assert counter.rows == 0


def test_the_whole_grid_is_used(baseline: Baseline) -> None:
    assert len(baseline.features[0].edge_array()) == EDGES


def test_the_tap_counts_features_and_scores(baseline: Baseline) -> None:
    counter = Counter(baseline)
    tap = ProfileTap(counter)
    features = np.zeros((3, 4), np.float32)
    tap.observe(features, {"score": np.array([0.1, 0.9, 1.0], np.float32), "label": np.array([0, 1, 1])})
    tap.observe(features[:1], {"probabilities": np.array([[0.3, 0.7]], np.float32)})
    tap.observe(features[:2], {"label": np.array([0, 1])})
    window = counter.take(0, 1)
    assert window.rows == 6
    assert dict(enumerate(window.scores)) | {3: 1, 22: 1, 28: 1, 31: 1} == dict(enumerate(window.scores))
    assert window.scores.sum() == 4


def test_a_model_without_score_counts_none() -> None:
    counter = Counter(learn_baseline(np.zeros((9, 1), np.float32), ["x"]))
    ProfileTap(counter).observe(np.zeros((2, 1), np.float32), {"score": np.array([17.0, -4.0], np.float32)})
    assert counter.take(0, 1).scores.sum() == 0


def test_scores_of_one_probability_column() -> None:
    assert scores_of({"probabilities": np.array([[0.25], [0.5]])}).tolist() == [0.25, 0.5]
    assert scores_of({"label": np.array([1])}) is None
    assert scores_of({"score": np.array([1, 2])}) is None
