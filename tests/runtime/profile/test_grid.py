"""The grid: every float32 lands on one level, and its meaning is right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from outrider.runtime.errors import BadDataError
from outrider.runtime.profile import BINS, SCORE_BINS, Counter, learn_baseline, score_bin
from outrider.runtime.profile.grid import below, learn_edges, score_bins

any_float = st.floats(width=32, allow_nan=True, allow_infinity=True)


def one(column: np.ndarray, **kwargs: object) -> object:
    return learn_baseline(np.asarray(column, np.float32)[:, None], ["x"], **kwargs)


def count(baseline: object, values: list[float]) -> object:
    counter = Counter(baseline)
    counter.observe(np.array(values, np.float32)[:, None])
    return counter.take(0.0, 1.0)


@settings(deadline=None, max_examples=200)
@given(arrays(np.float32, st.integers(1, 400), elements=any_float))
def test_edges_ascend_and_counts_add_up(column: np.ndarray) -> None:
    edges, _ = learn_edges(column)
    assert 3 <= len(edges) <= 255
    assert np.all(edges[1:] > edges[:-1])
    assert edges[-1] == np.inf
    baseline = one(column)
    layout = baseline.layout
    assert layout.reference.sum() == len(column)
    assert layout.reference[0, -1] == np.isnan(column).sum()
    inside = np.isfinite(column) & (np.abs(column) >= np.finfo(np.float32).tiny)
    assert np.where(layout.outside, layout.reference, 0).sum() <= (~inside).sum()
    assert np.all((layout.cumulative[layout.interior] > 0) & (layout.cumulative[layout.interior] < 1))


def test_bins_hold_about_equal_reference_mass() -> None:
    rng = np.random.default_rng(0)
    layout = one(rng.lognormal(size=20_000)).layout
    assert layout.bins[0] == BINS
    assert np.abs(layout.cumulative[0] - np.arange(1, BINS) / BINS).max() < 0.005


def test_constant_feature() -> None:
    baseline = one(np.full(100, 5.0))
    assert baseline.layout.bins[0] == 1
    window = count(baseline, [5.0, 5.0, 4.999, 6.0, float("nan"), float("inf"), -float("inf")])
    assert window.nulls[0] == 1
    assert window.outside[0] == 4
    assert window.bins[0, 0] == 6


def test_feature_without_a_value() -> None:
    baseline = one(np.full(10, np.nan))
    window = count(baseline, [float("nan"), 0.0, 1.0])
    assert (window.nulls[0], window.outside[0]) == (1, 2)


def test_unseen_codes_between_known_ones() -> None:
    baseline = one(np.repeat([0, 1, 2, 5, 9], 20))
    assert baseline.features[0].discrete
    window = count(baseline, [0, 1, 2, 5, 9, 3, 4, 7, -1, 10, 0.5])
    assert window.outside[0] == 6
    assert window.bins[0, :5].sum() == window.rows == 11


def test_range_of_a_continuous_feature() -> None:
    baseline = one(np.linspace(-1, 1, 1000))
    assert not baseline.features[0].discrete
    window = count(baseline, [-1.0, 1.0, 0.123456, -1.0001, 1.0001, 3e38, -3e38])
    assert window.outside[0] == 4


def test_heavy_value_leaves_the_rest_told_apart() -> None:
    rng = np.random.default_rng(0)
    column = np.where(rng.random(10_000) < 0.9, 0.0, rng.random(10_000))
    layout = one(column).layout
    assert layout.bins[0] == BINS
    assert (layout.cumulative[0] > 0.905).sum() >= 8


def test_rare_codes_are_told_apart() -> None:
    codes = np.repeat(np.arange(20), [9000] + [50] * 19)
    layout = one(codes).layout
    assert layout.bins[0] == BINS
    assert one(codes[codes < 10]).layout.bins[0] == 10


def test_no_edge_is_subnormal() -> None:
    column = np.array([0.0, 1e-45, -1e-45, 1e-39, 1.0], np.float32)
    edges, _ = learn_edges(column)
    assert not np.any((np.abs(edges) < np.finfo(np.float32).tiny) & (edges != 0))
    assert below(np.float32(0)) == -np.finfo(np.float32).tiny
    assert below(np.finfo(np.float32).tiny) == 0


@settings(deadline=None, max_examples=200)
@given(st.floats(allow_nan=True, allow_infinity=True))
def test_score_bin_is_total_and_agrees_with_the_array_form(score: float) -> None:
    bin_ = score_bin(score)
    assert 0 <= bin_ < SCORE_BINS
    assert score_bins(np.array([score]))[0] == bin_
    if 0 <= score < 1:
        assert bin_ == int(score * SCORE_BINS)


@pytest.mark.parametrize(
    ("features", "names", "scores", "blocks"),
    [
        (np.zeros((3, 2)), ["a", "b"], None, None),
        (np.zeros(3, np.float32), ["a"], None, None),
        (np.zeros((0, 1), np.float32), ["a"], None, None),
        (np.zeros((3, 2), np.float32), ["a"], None, None),
        (np.zeros((3, 2), np.float32), ["a", "a"], None, None),
        (np.zeros((3, 1), np.float32), ["a"], np.zeros((3, 2)), None),
        (np.zeros((3, 1), np.float32), ["a"], np.array([0.0, 1.0, 7.0]), None),
        (np.zeros((3, 1), np.float32), ["a"], None, 2),
        (np.zeros((3, 1), np.float32), ["a"], None, 8),
    ],
)
def test_bad_training_rows_are_refused(features: object, names: object, scores: object, blocks: object) -> None:
    with pytest.raises(BadDataError):
        learn_baseline(features, names, scores, blocks=blocks)
