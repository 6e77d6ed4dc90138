"""The e-process: the closed form against plain integration, its mean under H0, and what happens at the limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from outrider.fleet.drift.eprocess import e_value, log_evidence_above, log_evidence_below, log_sum


@settings(deadline=None, max_examples=40)
@given(n=st.integers(0, 60), share=st.floats(0, 1), q=st.floats(0.02, 0.95), a=st.sampled_from([0.5, 1.0]))
def test_closed_form_is_the_integral(n: int, share: float, q: float, a: float) -> None:
    k = round(share * n)
    prior = stats.beta(a, 2.0)

    def ratio(p: float) -> float:
        return (p / q) ** k * ((1 - p) / (1 - q)) ** (n - k) * prior.pdf(p)

    expected = integrate.quad(ratio, q, 1, limit=200)[0] / prior.sf(q)
    assert math.exp(log_evidence_above(k, n, q, a=a, b=2.0)) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("p", [0.02, 0.2, 0.5, 0.9])
def test_mean_under_the_null_is_at_most_one(p: float) -> None:
    n = 200
    k = np.arange(n + 1)
    log_chance = stats.binom.logpmf(k, n, p)

    def mean(log_e: np.ndarray) -> float:
        return float(np.exp(log_chance + log_e).sum())

    assert mean(log_evidence_above(k, n, p)) == pytest.approx(1.0, rel=1e-9)
    assert mean(log_evidence_below(k, n, p)) == pytest.approx(1.0, rel=1e-9)
    assert mean(log_evidence_above(k, n, min(p + 0.05, 0.99))) < 1.0


def test_below_mirrors_above() -> None:
    assert log_evidence_below(30, 100, 0.6) == pytest.approx(log_evidence_above(70, 100, 0.4))
    assert log_evidence_above(np.arange(3), 5, 0.5).shape == (3,)


def test_no_trials_are_no_evidence() -> None:
    assert log_evidence_above(0, 0, 0.3) == pytest.approx(0.0)


def test_an_underflowed_tail_is_no_evidence() -> None:
    """Far inside the null the beta tail underflows to 0. A floor such as 1e-300 under it would be false evidence.

    The power of q that divides it is as small, so that evidence of 10**5 and more would come out of nothing.
    """
    k, n, q = 0, 1_000_000, 0.5
    floored = stats.beta(k + 0.5, n - k + 0.5)
    assert floored.sf(q) == 0.0
    assert log_evidence_above(k, n, q) == -math.inf
    from_a_floor = math.log(1e-300) - k * math.log(q) - (n - k) * math.log1p(-q)
    assert from_a_floor > 100_000
    assert log_evidence_below(n, n, 0.5) == -math.inf
    mixed = log_sum(np.array([[-math.inf, 0.0], [-math.inf, -math.inf]]), axis=1)
    assert mixed.tolist() == [0.0, -math.inf]


@pytest.mark.parametrize("limit", [0.0, 1.0, -0.5, 1.5])
def test_limits_outside_the_unit_interval_are_not_tested(limit: float) -> None:
    assert log_evidence_above(50, 100, limit) == -math.inf
    assert log_evidence_below(50, 100, limit) == -math.inf


def test_evidence_of_huge_counts_is_finite() -> None:
    log_e = float(log_evidence_above(600_000_000, 10**9, 0.5))
    assert log_e > 1e6
    assert math.isfinite(e_value(log_e))
