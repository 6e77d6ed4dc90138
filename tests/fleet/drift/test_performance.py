"""Accuracy: a floor that holds is not broken by chance, one that does not is found; and estimates without labels."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from outrider.fleet.drift import Breach, FloorState, FloorTest, e_bh, estimate_accuracy, rank
from outrider.fleet.drift.cbpe import right_by_bin
from outrider.fleet.drift.starts import MAX_STARTS
from outrider.runtime.errors import BadDataError
from outrider.runtime.profile import SCORE_BINS
from outrider.runtime.profile.grid import score_bins


def labels_until_breach(
    rng: np.random.Generator, accuracy: float, limit: int, *, good: int = 0, alpha: float = 0.05
) -> tuple[int, Breach] | None:
    state, seen = FloorTest.new_state(0.93, alpha=alpha), 0
    while seen < good + limit:
        share = accuracy if seen >= good else 0.95
        state, breach = FloorTest.update(state, int(rng.binomial(50, share)), 50)
        seen += 50
        if breach is not None:
            return seen - good, breach
    return None


def test_a_floor_that_holds_is_not_broken() -> None:
    rng = np.random.default_rng(1)
    assert all(labels_until_breach(rng, 0.94, 20_000) is None for _ in range(20))
    at_the_floor = sum(labels_until_breach(rng, 0.93, 5000) is not None for _ in range(60))
    assert at_the_floor <= 7, "at most alpha = 5 % of 60, and chance"


def test_90_percent_against_93_is_found_within_1500_labels() -> None:
    rng = np.random.default_rng(2)
    found = [labels_until_breach(rng, 0.90, 1500) for _ in range(60)]
    assert sum(each is not None for each in found) >= 42
    for _, breach in filter(None, found):
        assert breach.accuracy < 0.93
        assert breach.e_value >= breach.threshold == pytest.approx(20)
        assert 0 < breach.labels <= 1500


def test_a_collapse_after_a_good_time_is_found_at_once() -> None:
    rng = np.random.default_rng(3)
    for _ in range(10):
        found = labels_until_breach(rng, 0.7, 600, good=10_000)
        assert found is not None
        assert found[1].labels < 2000


def test_one_breach_and_a_bounded_state() -> None:
    state, breaches = FloorTest.new_state(0.9, alpha=0.01), []
    for _ in range(300):
        state, breach = FloorTest.update(state, 80, 100)
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=FloorState)
        if breach is not None:
            breaches.append(breach)
    assert len(breaches) == 1
    assert state.breached
    assert len(state.starts) <= MAX_STARTS
    assert FloorTest.update(state, 0, 0) == (state, None)


@pytest.mark.parametrize(("correct", "total"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(correct: int, total: int) -> None:
    with pytest.raises(BadDataError):
        FloorTest.update(FloorTest.new_state(0.9), correct, total)


@pytest.mark.parametrize("floor", [0.0, 1.0])
def test_impossible_floors_are_refused(floor: float) -> None:
    with pytest.raises(BadDataError):
        FloorTest.new_state(floor)


def test_estimate_from_calibrated_scores() -> None:
    rng = np.random.default_rng(4)
    for a, b in ((0.5, 3.0), (0.3, 0.3), (2.0, 2.0)):
        scores = rng.beta(a, b, 50_000)
        right = (rng.random(50_000) < scores) == (scores > 0.5)
        estimate = estimate_accuracy(np.bincount(score_bins(scores), minlength=SCORE_BINS))
        assert estimate.rows == 50_000
        assert abs(estimate.accuracy - right.mean()) < 0.006 + 3 * estimate.error


def test_estimate_with_measured_bins() -> None:
    counts = np.zeros(SCORE_BINS, np.int64)
    counts[3] = 10
    assert estimate_accuracy(counts, right=np.full(SCORE_BINS, 0.8)).accuracy == pytest.approx(0.8)
    assert right_by_bin("top")[3] == pytest.approx(3.5 / 32)
    for bad in (np.zeros(SCORE_BINS), np.ones(5), -counts):
        with pytest.raises(BadDataError):
            estimate_accuracy(bad)


def test_e_bh() -> None:
    logs = [math.log(e) for e in (500.0, 1.0, 90.0, 0.1)]
    assert e_bh(logs, 0.05) == [0, 2]
    assert e_bh([0.0, -math.inf], 0.05) == []
    assert e_bh([], 0.05) == []
    ranked = rank(dict(zip("abcd", logs, strict=True)), 0.05)
    assert [each.name for each in ranked] == ["a", "c", "b", "d"]
    assert [each.discovered for each in ranked] == [True, True, False, False]
    assert math.isfinite(rank({"a": 1e9}, 0.05)[0].e_value)
