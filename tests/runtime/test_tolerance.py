"""Comparing outputs: what is an error, how large, and what is beyond the tolerance."""

from __future__ import annotations

import numpy as np
import pytest

from outrider.runtime.tolerance import Deviation, Tolerance, compare, errors_of

INF, NAN = np.inf, np.nan


EXACT = Tolerance()


def found(value: object, wanted: object, tolerance: Tolerance = EXACT, dtype: object = np.float32) -> Deviation:
    return compare({"y": np.asarray(value, dtype)}, {"y": np.asarray(wanted, dtype)}, tolerance)


def test_errors_by_their_kind():
    deviation = found([1.0, 3.0, -8.0], [1.0, 2.0, -10.0])
    assert deviation.absolute == 2
    assert deviation.relative == 0.5
    assert deviation.of_max == pytest.approx(0.2)
    assert deviation.l2 == pytest.approx(np.sqrt(5) / np.sqrt(105))
    assert deviation.problems == {"y": "is out of tolerance in 2 of 3 values"}


@pytest.mark.parametrize(
    ("tolerance", "problems"),
    [
        (Tolerance(), 2),
        (Tolerance(atol=1.0), 1),
        (Tolerance(atol=2.0), 0),
        (Tolerance(rtol=0.2), 1),
        (Tolerance(rtol=0.5), 0),
        (Tolerance(of_max=0.1), 1),
        (Tolerance(of_max=0.2), 0),
        (Tolerance(0.5, 0.2, 0.05), 0),
    ],
)
def test_what_a_tolerance_allows(tolerance, problems):
    said = found([1.0, 3.0, -8.0], [1.0, 2.0, -10.0], tolerance).problems
    assert said == ({"y": f"is out of tolerance in {problems} of 3 values"} if problems else {})


def test_what_is_not_finite():
    assert found([INF, -INF, NAN], [INF, -INF, NAN]) == Deviation(problems={})
    for wrong in ([NAN], [INF], [-INF]):
        deviation = found(wrong, [1.0], Tolerance(atol=1e30))
        assert deviation.absolute == deviation.l2 == INF
        assert deviation.problems
    assert found([1.0], [NAN], Tolerance(of_max=1e30)).problems
    assert found([3.0, INF], [2.0, INF], Tolerance(of_max=0.5)).problems == {}  # the largest finite value counts
    assert errors_of(np.array([INF, 1.0]), np.array([-INF, NAN])).tolist() == [INF, INF]


def test_without_any_bound_nothing_is_a_problem_but_the_figures_tell():
    boundless = Tolerance(of_max=INF, differing=1.0)
    for wanted in ([0.0, 0.0], [1.0, -2.0]):
        deviation = found([1.0, 1.0], wanted, boundless)
        assert deviation.problems == {}
        assert deviation.l2 > 0.5
    assert found([0.0], [0.0], boundless) == Deviation(problems={})
    assert found([1, 2], [3, 4], boundless, np.int64).differing == 1.0


def test_integers_truth_values_and_text_differ_by_their_share():
    assert found([1, 2, 3, 4], [1, 2, 3, 5], dtype=np.int64).problems == {"y": "differs in 1 of 4 values"}
    assert found([1, 2, 3, 4], [1, 2, 3, 5], Tolerance(differing=0.25), np.int64).problems == {}
    assert found([True, False], [True, True], dtype=bool).differing == 0.5
    assert found(["a", "b"], ["a", "c"], dtype=object).differing == 0.5
    assert found(["a", "b"], ["a", "b"], dtype=object).problems == {}


def test_shapes_and_outputs_without_values():
    assert found([1.0], [1.0, 2.0]).problems == {"y": "has the shape (1,), not (2,)"}
    assert found([1.0], [1.0, 2.0]).l2 == INF
    empty = np.zeros((0, 3))
    assert found(empty, empty) == Deviation(problems={})
    assert found(2.0, 2.0) == Deviation(problems={})


def test_the_largest_over_all_outputs():
    wanted = {"big": np.full(2, 100.0), "small": np.full(2, 0.01)}
    given = {"big": wanted["big"] + 1, "small": wanted["small"] + 0.001, "more": np.zeros(1)}
    deviation = compare(given, wanted, Tolerance(of_max=0.05))
    assert (deviation.absolute, deviation.of_max) == (pytest.approx(1), pytest.approx(0.1))
    assert deviation.problems == {"small": "is out of tolerance in 2 of 2 values"}


@pytest.mark.parametrize(
    ("tolerance", "text"),
    [
        (Tolerance(), "0"),
        (Tolerance(1e-6, 1e-5), "1e-06 + 1e-05 |value|"),
        (Tolerance(of_max=0.01), "0.01 of the largest"),
        (Tolerance(1e-6, 1e-5, 1e-4), "1e-06 + 1e-05 |value| + 0.0001 of the largest"),
    ],
)
def test_in_words(tolerance, text):
    assert str(tolerance) == text
