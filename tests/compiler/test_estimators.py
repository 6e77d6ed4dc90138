"""scikit-learn's estimators and their parameters: read, compared with the library, and refused where they must be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas
import pytest
import treelite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn import dummy, ensemble, linear_model

from outrider.compiler import compile_model
from outrider.compiler.frontends import read_model
from outrider.compiler.trees.forest import Forest
from outrider.runtime import load
from outrider.runtime.errors import UnsupportedError

Array = np.ndarray
EXAMPLES = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FORESTS = ("RandomForest", "ExtraTrees")


@EXAMPLES
@given(
    st.sampled_from([f"{name}{kind}" for name in FORESTS for kind in ("Classifier", "Regressor")]),
    st.integers(1, 3),
    st.sampled_from([1, 3, None]),
    st.integers(0, 99),
)
def test_forests_of_one_and_several_targets(reads, table, name, targets, depth, seed):
    rows, target = table
    labels = np.stack([target, target > 0, np.arange(len(target)) % 5], axis=1)[:, :targets]
    fitted = getattr(ensemble, name)(4, max_depth=depth, random_state=seed)
    reads(fitted.fit(rows, labels if targets > 1 else labels[:, 0]), rows)


def test_a_classifier_of_several_targets_gives_each_its_probabilities(table, tmp_path):
    rows, target = table
    names = np.array(["low", "middle", "high"])[target]
    labels = np.stack([names, (target > 0).astype(str), np.full(len(target), "same")], axis=1)
    fitted = ensemble.RandomForestClassifier(5, max_depth=4, random_state=0).fit(rows, labels)
    report = compile_model(fitted, out=tmp_path / "several.orb", name="several", calibration=rows)
    assert report.manifest.artifacts[0].outputs == ("probabilities",)
    with load(tmp_path / "several.orb") as session:
        outputs = session.run({"features": rows})
        assert list(outputs) == ["probabilities", "probabilities_0", "probabilities_1", "probabilities_2"]
        for i, wanted in enumerate(fitted.predict_proba(rows)):
            found = outputs[f"probabilities_{i}"]
            assert found.flags.c_contiguous
            assert np.allclose(found, wanted, atol=1e-6)
        assert np.array_equal(session.predict(rows), outputs["probabilities"])
        assert outputs["probabilities"].shape == (len(rows), 3 + 2 + 1)


def test_a_checkpoint_of_several_targets(reads, table):
    rows, target = table
    labels = np.stack([target > 0, target], axis=1)
    model = treelite.sklearn.import_model(ensemble.ExtraTreesClassifier(4, max_depth=4).fit(rows, labels))
    outputs = reads(model, rows).signature.outputs
    assert [(spec.name, spec.shape) for spec in outputs] == [
        ("probabilities", (None, 5)),
        ("probabilities_0", (None, 2)),
        ("probabilities_1", (None, 3)),
    ]


def test_a_single_class_is_always_the_answer(reads, table, tmp_path):
    rows, target = table
    fitted = ensemble.RandomForestClassifier(2).fit(rows, np.full(len(target), "only"))
    reads(fitted, rows)
    compile_model(fitted, out=tmp_path / "one.orb", name="one", calibration=rows)
    with load(tmp_path / "one.orb") as session:
        assert set(session.run({"features": rows})["label"].tolist()) == {"only"}


STARTS = [
    None,
    "zero",
    dummy.DummyClassifier(strategy="prior"),
    dummy.DummyClassifier(strategy="uniform"),
    dummy.DummyClassifier(strategy="most_frequent"),
]


@pytest.mark.parametrize("start", STARTS, ids=lambda start: getattr(start, "strategy", start))
def test_boosting_starts_from_constants(reads, table, start):
    rows, target = np.nan_to_num(table[0]), table[1]
    for loss, labels in (("log_loss", target), ("log_loss", target > 0), ("exponential", target > 0)):
        reads(ensemble.GradientBoostingClassifier(loss=loss, n_estimators=3, init=start).fit(rows, labels), rows)
    if isinstance(start, dummy.DummyClassifier):
        start = dummy.DummyRegressor(strategy="constant", constant=5.0)
    for loss in ("squared_error", "absolute_error", "huber", "quantile"):
        reads(ensemble.GradientBoostingRegressor(loss=loss, n_estimators=3, init=start).fit(rows, target), rows)


@pytest.mark.parametrize("start", [linear_model.LogisticRegression(), dummy.DummyClassifier(strategy="stratified")])
def test_boosting_that_starts_from_the_rows_is_refused(table, start):
    rows, target = np.nan_to_num(table[0]), table[1]
    fitted = ensemble.GradientBoostingClassifier(n_estimators=2, init=start).fit(rows, target)
    with pytest.raises(UnsupportedError, match=rf"starts from the predictions of a {type(start).__name__}.*'zero'"):
        read_model(fitted)


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "gamma", "poisson", "quantile"])
def test_histogram_boosting_losses(reads, table, loss):
    rows, target = table
    settings_ = {"loss": loss, "max_iter": 30, "early_stopping": True, "n_iter_no_change": 2, "random_state": 0}
    fitted = ensemble.HistGradientBoostingRegressor(quantile=0.3 if loss == "quantile" else None, **settings_)
    reads(fitted.fit(rows, target + 1.0), rows)


@EXAMPLES
@given(st.integers(2, 12), st.integers(0, 99), st.sampled_from(["numbers", "frame"]))
def test_histogram_boosting_on_categories(reads, table, count, seed, form):
    rows, target = np.array(table[0]), table[1]
    codes = np.random.default_rng(seed).integers(0, count, len(rows))
    rows[:, 2] = codes * 2
    columns = [2]
    data: Any = rows
    if form == "frame":
        data, columns = pandas.DataFrame(rows, columns=list("abcdef")), ["c"]
        data["c"] = data["c"].astype(int).astype("category")
    fitted = ensemble.HistGradientBoostingRegressor(max_iter=5, categorical_features=columns, min_samples_leaf=2)
    unseen = rows.copy()
    unseen[:, 2] = np.resize([1, -1, 2.5, 255, np.nan, 1e9], len(rows))
    model = reads(fitted.fit(data, target + codes % 2), rows, unseen)
    assert isinstance(model.payload, Forest)
    assert model.payload.exact_categories


@pytest.mark.parametrize(
    ("categories", "message"), [(["w", "x", "y"], "text categories"), ([-1, 0, 1], "integers from 0")]
)
def test_histogram_boosting_on_other_categories_is_refused(table, categories, message):
    rows, target = table
    frame = pandas.DataFrame(rows, columns=list("abcdef"))
    frame["c"] = pandas.Categorical(np.resize(categories, len(rows)))
    fitted = ensemble.HistGradientBoostingRegressor(max_iter=3, categorical_features="from_dtype").fit(frame, target)
    with pytest.raises(UnsupportedError, match=message):
        read_model(fitted)


@pytest.mark.parametrize("samples", [1, 2, 50, "auto"])
def test_isolation_forests(reads, table, samples):
    rows = table[0]
    fitted = ensemble.IsolationForest(n_estimators=5, max_samples=samples, max_features=0.5, random_state=0)
    assert reads(fitted.fit(rows), rows).accepts_inf


def test_warm_starts_and_early_stopping(reads, table):
    rows, target = np.nan_to_num(table[0]), table[1]
    stopped = ensemble.GradientBoostingClassifier(n_estimators=60, n_iter_no_change=2, tol=0.1, random_state=0)
    assert len(stopped.fit(rows, target).estimators_) < 60
    reads(stopped, rows)
    warm = ensemble.RandomForestRegressor(2, warm_start=True, random_state=0).fit(rows, target)
    reads(warm.set_params(n_estimators=5).fit(rows, target), rows)
