"""Metrics against scikit-learn, and the gate's decisions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.metrics import log_loss as reference_log_loss

from outrider.trainer.gate import decide, sign_test
from outrider.trainer.metrics import auc, evaluate, log_loss, predicted
from outrider.trainer.recipe import GateSettings

FLOATS = st.floats(0.0625, 0.9375, width=32)
BOTH_CLASSES = 2
PAIRS = st.lists(st.tuples(FLOATS, st.booleans()), min_size=4, max_size=60).filter(
    lambda pairs: len({label for _, label in pairs}) == BOTH_CLASSES
)


@settings(deadline=None, max_examples=60)
@given(PAIRS)
def test_binary_metrics_agree_with_scikit_learn(pairs):
    scores = np.array([round(score, 1) for score, _ in pairs], dtype=np.float32)
    labels = np.array([int(label) for _, label in pairs])
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert log_loss(scores, labels) == pytest.approx(reference_log_loss(labels, scores.astype(float)), rel=1e-5)
    shares = np.array([0.3, 0.7])
    figures = evaluate(scores, labels, shares)
    assert figures.accuracy == pytest.approx(accuracy_score(labels, scores > 0.5))
    assert figures.majority_accuracy == pytest.approx(np.mean(labels == 1))
    assert evaluate(np.column_stack([1 - scores, scores]), labels, shares).auc == pytest.approx(figures.auc)


def test_three_classes_and_one_class():
    scores = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2]], dtype=np.float32)
    assert predicted(scores).tolist() == [0, 2, 1]
    assert auc(scores, np.array([0, 2, 1])) is None
    assert auc(np.array([0.2, 0.3]), np.array([1, 1])) is None
    assert math.isfinite(log_loss(np.array([0.0, 1.0], dtype=np.float32), np.array([1, 0])))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 400), st.integers(0, 400))
def test_the_sign_test_is_the_binomial_test(ours, theirs):
    wanted = binomtest(ours, ours + theirs, 0.5).pvalue if ours + theirs else 1.0
    assert sign_test(ours, theirs) == pytest.approx(wanted, rel=1e-9)


LABELS = np.array([0, 1] * 100)
RIGHT = np.where(LABELS == 1, 0.9, 0.1).astype(np.float32)
WORSE = RIGHT.copy()
WORSE[:20] = 1 - WORSE[:20]


def test_a_better_candidate_is_promoted_with_its_numbers():
    decision = decide(RIGHT, WORSE, LABELS, GateSettings(min_gain=0.05))
    assert decision.promote
    assert (decision.candidate, decision.champion) == (1.0, 0.9)
    assert decision.gain == pytest.approx(0.1)
    assert (decision.candidate_right, decision.champion_right) == (20, 0)
    assert decision.p_value == pytest.approx(2 * 0.5**20)
    assert "accuracy 1.0000 against the champion's 0.9000 on 200 held-out rows" in decision.reason


@pytest.mark.parametrize(
    ("settings_", "candidate", "champion", "why"),
    [
        (GateSettings(min_gain=0.2), RIGHT, WORSE, r"gain of \+0.1000, less than the 0.2000"),
        (GateSettings(), WORSE, RIGHT, r"gain of -0.1000"),
        (GateSettings(metric="log_loss"), WORSE, RIGHT, "log_loss"),
        (GateSettings(metric="auc", min_gain=1e-9), RIGHT, RIGHT, "auc"),
        (GateSettings(min_rows=201), RIGHT, WORSE, "fewer than the 201 rows"),
    ],
)
def test_what_is_not_promoted_says_why(settings_, candidate, champion, why):
    import re

    decision = decide(candidate, champion, LABELS, settings_)
    assert not decision.promote
    assert re.search(why, decision.reason)


def test_equal_models_pass_a_gate_that_asks_for_no_gain():
    assert decide(RIGHT, RIGHT, LABELS, GateSettings()).promote


@pytest.mark.parametrize("metric", ["log_loss", "auc"])
def test_the_other_metrics_promote_too(metric):
    assert decide(RIGHT, WORSE, LABELS, GateSettings(metric=metric)).promote


def test_no_auc_without_both_classes():
    decision = decide(RIGHT, WORSE, np.ones(200, dtype=np.int64), GateSettings(metric="auc"))
    assert not decision.promote
    assert "one class" in decision.reason
