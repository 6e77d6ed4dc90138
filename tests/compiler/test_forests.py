"""Differential tests: compiled forests against XGBoost, LightGBM, scikit-learn and Treelite themselves."""

from __future__ import annotations

import warnings
from typing import Any

import lightgbm
import numpy as np
import pytest
import treelite
import xgboost
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn import ensemble

QUIET = {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 3, "num_leaves": 15}
EXAMPLES = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def boost(rows: Any, target: Any, rounds: int = 6, types: Any = None, **parameters: Any) -> xgboost.Booster:
    matrix = xgboost.DMatrix(rows, label=target, feature_types=types, enable_categorical=True)
    if parameters.get("objective", "").startswith("rank"):
        matrix.set_group([100] * 4)
    return xgboost.train({"max_depth": 4, "nthread": 1, **parameters}, matrix, rounds)


def light(rows: Any, target: Any, rounds: int = 6, categories: Any = (), **parameters: Any) -> lightgbm.Booster:
    group = [100] * 4 if "rank" in parameters["objective"] else None
    data = lightgbm.Dataset(rows, label=target, group=group, categorical_feature=list(categories))
    return lightgbm.train({**QUIET, **parameters}, data, rounds)


@pytest.mark.parametrize(
    "objective",
    [
        "binary:logistic",
        "binary:hinge",
        "reg:squarederror",
        "reg:gamma",
        "count:poisson",
        "survival:cox",
        "rank:ndcg",
    ],
)
def test_xgboost_objectives(agree, table, objective):
    rows, target = table
    label = target > 0 if objective.startswith(("binary", "rank")) else target + 1.0
    booster = boost(rows, label, objective=objective)
    agree(booster, rows, expected=booster.inplace_predict)


def test_xgboost_multiclass_gives_probabilities_or_the_class(agree, table):
    rows, target = table
    agree(boost(rows, target, objective="multi:softprob", num_class=3), rows)
    agree(boost(rows, target, objective="multi:softmax", num_class=3), rows, lanes=4)
    vectors = {"multi_strategy": "multi_output_tree", "objective": "multi:softprob", "num_class": 3}
    agree(boost(rows, target, **vectors), rows)


def test_xgboost_several_targets(agree, table):
    rows, target = table
    both = np.stack([target, -2.0 * target], axis=1)
    agree(boost(rows, both, multi_strategy="multi_output_tree"), rows)
    agree(boost(rows, both), rows)


def test_xgboost_dart_parallel_trees_and_base_score(agree, table):
    rows, target = table
    agree(boost(rows, target > 0, 15, booster="dart", rate_drop=0.5, objective="binary:logistic"), rows)
    agree(boost(rows, target, 3, num_parallel_tree=4, subsample=0.5, base_score=-3.7), rows, lanes=16)


@pytest.mark.parametrize("one_hot", [1, 50])
def test_xgboost_categories(agree, table, one_hot):
    rows, target = table
    rng = np.random.default_rng(0)
    rows = rows.copy()
    rows[:, 2], rows[:, 4] = rng.integers(0, 40, len(rows)), rng.integers(3, 7, len(rows))
    types = ["q", "q", "c", "q", "c", "q"]
    booster = boost(rows, target + rows[:, 2] % 3, 8, types, max_cat_to_onehot=one_hot, min_child_weight=0, max_depth=6)
    agree(booster, rows)


def test_xgboost_sums_are_bit_for_bit(table):
    rows, target = table
    booster = boost(rows, target * 1000.0, 60)
    from outrider.compiler.backends import Candidate, Order, backend
    from outrider.compiler.frontends import read_model
    from outrider.runtime.engines import open_engine
    from outrider.targets import get_target

    model = read_model(booster)
    made = backend("native").build(Order(model, get_target("host")), Candidate("native", options={"lanes": "8"}))
    engine = open_engine(made.entry, made.data, model.signature)
    assert np.array_equal(engine.run({"features": rows})["score"], booster.predict(xgboost.DMatrix(rows)))
    engine.close()


def test_xgboost_wrappers(agree, table):
    rows, target = table
    stopped = xgboost.XGBClassifier(n_estimators=100, early_stopping_rounds=3, n_jobs=1)
    stopped.fit(rows[:200], target[:200] > 0, eval_set=[(rows[200:], target[200:] > 0)], verbose=False)
    assert stopped.best_iteration + 1 < stopped.get_booster().num_boosted_rounds()
    agree(stopped, rows, expected=stopped.predict_proba)
    several = xgboost.XGBClassifier(n_estimators=4, n_jobs=1).fit(rows, target)
    agree(several, rows, expected=several.predict_proba)
    regressor = xgboost.XGBRegressor(n_estimators=4, n_jobs=1).fit(rows, target * 100.0)
    agree(regressor, rows, expected=regressor.predict)


@pytest.mark.parametrize(
    "objective",
    ["binary", "regression", "multiclass", "multiclassova", "poisson", "cross_entropy_lambda", "lambdarank"],
)
def test_lightgbm_objectives(agree, table, objective):
    rows, target = table
    extra = {"num_class": 3} if objective.startswith("multi") else {}
    label = target if objective.startswith("multi") else target > 0
    booster = light(rows, label, objective=objective, **extra)
    agree(booster, rows, expected=lambda x: booster.predict(x.astype(np.float64)) if len(x) else np.zeros(0))


@pytest.mark.parametrize(
    "parameters",
    [
        {"zero_as_missing": True},
        {"use_missing": False},
        {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
        {"boosting": "dart"},
        {"sigmoid": 2.5},
    ],
    ids=lambda parameters: next(iter(parameters)),
)
def test_lightgbm_modes(agree, table, parameters):
    rows, target = table
    rows = np.where(np.random.default_rng(1).random(rows.shape) < 0.3, 0, rows).astype(np.float32)
    agree(light(rows, target > 0, objective="binary", **parameters), rows)


@pytest.mark.parametrize("zero_as_missing", [False, True])
def test_lightgbm_categories(agree, table, zero_as_missing):
    rows, target = table
    rng = np.random.default_rng(0)
    rows = rows.copy()
    rows[:, 2], rows[:, 4] = rng.integers(0, 40, len(rows)), rng.integers(3, 7, len(rows))
    booster = light(
        rows,
        target + rows[:, 2] % 3,
        12,
        (2, 4),
        objective="regression",
        min_data_per_group=1,
        cat_smooth=1,
        max_cat_to_onehot=1,
        zero_as_missing=zero_as_missing,
    )
    agree(booster, rows, lanes=4)


@pytest.mark.filterwarnings("ignore:The argument 'eval_set'")
def test_lightgbm_wrapper_with_early_stopping_and_text_labels(agree, table):
    rows, target = table
    names = np.array(["fraud", "ok"])[(target > 0).astype(int)]
    model = lightgbm.LGBMClassifier(n_estimators=100, verbose=-1, n_jobs=1)
    stop = lightgbm.early_stopping(3, verbose=False)
    model.fit(rows[:200], names[:200], eval_set=[(rows[200:], names[200:])], callbacks=[stop])
    agree(model, rows, expected=model.predict_proba)


def sklearn_models() -> dict[str, Any]:
    return {
        "forest": ensemble.RandomForestClassifier(8, random_state=0),
        "trees": ensemble.ExtraTreesClassifier(8, max_depth=5, random_state=0),
        "regression": ensemble.RandomForestRegressor(8, random_state=0),
        "boosting": ensemble.GradientBoostingClassifier(n_estimators=5, random_state=0),
        "stopped": ensemble.GradientBoostingRegressor(n_estimators=60, n_iter_no_change=1, tol=0.5, random_state=0),
        "histogram": ensemble.HistGradientBoostingClassifier(max_iter=5, random_state=0),
        "gamma": ensemble.HistGradientBoostingRegressor(max_iter=5, loss="gamma", random_state=0),
        "isolation": ensemble.IsolationForest(n_estimators=8, max_features=0.5, random_state=0),
    }


@pytest.mark.parametrize("name", sklearn_models())
def test_sklearn(agree, table, name):
    rows, target = table
    model = sklearn_models()[name]
    given = np.nan_to_num(rows) if name in ("boosting", "stopped") else rows
    model.fit(given, target + 1)
    method = {"isolation": "score_samples"}.get(name, "predict_proba" if hasattr(model, "classes_") else "predict")
    agree(model, given, expected=getattr(model, method))


def test_sklearn_binary_losses_and_several_targets(agree, table):
    rows, target = table
    filled = np.nan_to_num(rows)
    for loss in ("log_loss", "exponential"):
        model = ensemble.GradientBoostingClassifier(n_estimators=4, loss=loss).fit(filled, target > 0)
        agree(model, filled, expected=model.predict_proba)
    both = np.stack([target, -1e6 * target], axis=1)
    agree(ensemble.RandomForestRegressor(5).fit(filled, both), filled)


def test_sklearn_unseen_categories_are_missing(agree, table):
    rows, target = table
    rng = np.random.default_rng(0)
    rows = rows.copy()
    rows[:, 2], rows[:, 4] = 3 * rng.integers(0, 10, len(rows)), rng.integers(3, 7, len(rows))
    rows[rng.random(rows.shape) < 0.1] = np.nan
    model = ensemble.HistGradientBoostingClassifier(max_iter=8, categorical_features=[2, 4], min_samples_leaf=3)
    model.fit(rows, (target + np.nan_to_num(rows[:, 2]) % 2) % 3)
    unseen = rows.copy()
    unseen[:, 2] += 1
    unseen[:, 4] = np.resize([2, 7, -1, 3.5, 300, np.nan], len(rows))
    agree(model, rows, unseen)


def test_treelite_checkpoint(agree, table, tmp_path):
    rows, target = table
    model = treelite.frontend.from_lightgbm(light(rows, target, objective="multiclass", num_class=3))
    model.serialize(tmp_path / "model.tl")
    agree(tmp_path / "model.tl", rows)


@st.composite
def training_sets(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows of few distinct, nasty values, so that trees split right between neighbours."""
    values = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(
        [0.0, -0.0, 1e-45, -1e-45, 1e-38, 1e-35, 3e38, 1.0, float(np.nextafter(np.float32(1), np.float32(2)))]
    )
    pool = np.array(draw(st.lists(values, min_size=3, max_size=12)), np.float32)
    features, seed = draw(st.integers(1, 5)), draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    rows = rng.choice(pool, size=(60, features)).astype(np.float32)
    rows[rng.random(rows.shape) < draw(st.sampled_from([0.0, 0.2]))] = np.nan
    target = rng.normal(size=60) + (np.nan_to_num(rows[:, 0]) > np.median(pool))
    return rows, target, draw(st.integers(1, 9))


@EXAMPLES
@given(training_sets())
def test_any_xgboost_model(agree, case):
    rows, target, depth = case
    booster = boost(rows, target, 4, max_depth=depth, min_child_weight=0, reg_lambda=0.1, tree_method="exact")
    agree(booster, rows)


@EXAMPLES
@given(training_sets())
def test_any_lightgbm_model(agree, case):
    rows, target, leaves = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        booster = light(
            rows, target, 4, objective="regression", num_leaves=leaves + 1, min_data_in_bin=1, min_data_in_leaf=1
        )
    agree(booster, rows)


@EXAMPLES
@given(training_sets())
def test_any_sklearn_forest(agree, case):
    rows, target, depth = case
    agree(ensemble.RandomForestRegressor(4, max_depth=depth, random_state=0).fit(rows, target), rows)
