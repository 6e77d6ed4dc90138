"""Every objective and mode of boosting that XGBoost and LightGBM have, read and compared with the library itself."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pandas
import pytest
import xgboost
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider.compiler.frontends import read_model
from outrider.compiler.trees.forest import Forest
from outrider.runtime.errors import UnsupportedError

Array = np.ndarray
EXAMPLES = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

POSITIVE, BINARY, CLASSES = "positive", "binary", "classes"
XGBOOST = {
    "reg:squarederror": POSITIVE,
    "reg:squaredlogerror": POSITIVE,
    "reg:logistic": BINARY,
    "reg:pseudohubererror": POSITIVE,
    "reg:absoluteerror": POSITIVE,
    "reg:quantileerror": POSITIVE,
    "reg:gamma": POSITIVE,
    "reg:tweedie": POSITIVE,
    "count:poisson": POSITIVE,
    "survival:cox": POSITIVE,
    "survival:aft": POSITIVE,
    "binary:logistic": BINARY,
    "binary:logitraw": BINARY,
    "binary:hinge": BINARY,
    "multi:softmax": CLASSES,
    "multi:softprob": CLASSES,
    "rank:ndcg": BINARY,
    "rank:map": BINARY,
    "rank:pairwise": BINARY,
}
LIGHTGBM = {
    "regression": POSITIVE,
    "regression_l1": POSITIVE,
    "huber": POSITIVE,
    "fair": POSITIVE,
    "poisson": POSITIVE,
    "quantile": POSITIVE,
    "mape": POSITIVE,
    "gamma": POSITIVE,
    "tweedie": POSITIVE,
    "binary": BINARY,
    "cross_entropy": BINARY,
    "cross_entropy_lambda": BINARY,
    "multiclass": CLASSES,
    "multiclassova": CLASSES,
    "lambdarank": BINARY,
    "rank_xendcg": BINARY,
}


def labels(kind: str, target: Array) -> Array:
    return {POSITIVE: target + 1.0, BINARY: (target > 0) * 1.0, CLASSES: target * 1.0}[kind]


def boost(rows: Array, target: Array, objective: str, rounds: int = 4, **parameters: Any) -> xgboost.Booster:
    label = labels(XGBOOST[objective], target)
    matrix = xgboost.DMatrix(rows, label=label)
    if objective.startswith("rank"):
        matrix.set_group([len(rows) // 2] * 2)
    if objective == "survival:aft":
        matrix.set_float_info("label_lower_bound", label)
        matrix.set_float_info("label_upper_bound", label + 1)
    if objective.startswith("multi"):
        parameters["num_class"] = 3
    if "quantile" in objective:
        parameters.setdefault("quantile_alpha", 0.3)
    return xgboost.train({"objective": objective, "max_depth": 3, "nthread": 1, **parameters}, matrix, rounds)


def light(rows: Array, target: Array, objective: Any, rounds: int = 4, **parameters: Any) -> lightgbm.Booster:
    kind = LIGHTGBM.get(objective, POSITIVE) if isinstance(objective, str) else CLASSES
    group = [len(rows) // 2] * 2 if "rank" in str(objective) else None
    if kind == CLASSES:
        parameters.setdefault("num_class", 3)
    quiet = {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 3, "num_leaves": 8}
    data = lightgbm.Dataset(rows, label=labels(kind, target), group=group)
    return lightgbm.train({**quiet, "objective": objective, **parameters}, data, rounds)


@pytest.mark.parametrize("objective", XGBOOST)
def test_xgboost_objectives(reads, table, objective):
    rows, target = table
    reads(boost(rows, target, objective), rows)


@EXAMPLES
@given(st.sampled_from(list(XGBOOST)), st.floats(0.05, 0.95), st.booleans(), st.integers(1, 3))
def test_xgboost_base_scores_dart_and_parallel_trees(reads, table, objective, base, dart, parallel):
    rows, target = table
    parameters: dict[str, Any] = {"base_score": base, "num_parallel_tree": parallel, "subsample": 0.7}
    if objective.startswith("multi"):
        parameters["base_score"] = [base, -base, 0.5]
    if dart:
        parameters |= {"booster": "dart", "rate_drop": 0.5, "one_drop": 1}
    reads(boost(rows, target, objective, **parameters), rows)


@pytest.mark.parametrize("strategy", ["one_output_per_tree", "multi_output_tree"])
def test_xgboost_several_outputs(reads, table, strategy):
    rows, target = table
    reads(boost(rows, target, "reg:quantileerror", multi_strategy=strategy, quantile_alpha=[0.1, 0.5, 0.9]), rows)
    several = np.stack([target > 0, target > 1], axis=1) * 1.0
    for objective in ("binary:logistic", "count:poisson"):
        for base in (0.4, [0.2, 0.6]):
            parameters = {"objective": objective, "multi_strategy": strategy, "base_score": base, "nthread": 1}
            booster = xgboost.train(parameters, xgboost.DMatrix(rows, label=several), 3)
            assert reads(booster, rows).signature.class_labels == ()


def test_xgboost_wrappers_and_objectives_of_ones_own(reads, table):
    rows, target = table
    several = np.stack([target > 0, target > 1], axis=1).astype(int)
    settings_ = {"n_estimators": 3, "max_depth": 3, "n_jobs": 1}
    reads(xgboost.XGBClassifier(**settings_).fit(rows, several), rows)
    reads(xgboost.XGBRFClassifier(**settings_).fit(rows, target), rows)
    reads(xgboost.XGBRanker(**settings_).fit(rows, target > 0, group=[200, 200]), rows)
    reads(xgboost.XGBRegressor(objective=lambda y, p: (p - y, np.ones_like(p)), **settings_).fit(rows, target), rows)


@pytest.mark.parametrize("objective", LIGHTGBM)
def test_lightgbm_objectives(reads, table, objective):
    rows, target = table
    reads(light(rows, target, objective), rows)


@EXAMPLES
@given(
    st.sampled_from(list(LIGHTGBM)),
    st.sampled_from(["gbdt", "dart", "rf"]),
    st.booleans(),
    st.sampled_from([{}, {"zero_as_missing": True}, {"use_missing": False}, {"extra_trees": True}]),
)
def test_lightgbm_modes(reads, table, objective, boosting, average, more):
    rows, target = table
    if boosting == "rf":
        more = {**more, "bagging_freq": 1, "bagging_fraction": 0.5}
    reads(light(rows, target, objective, boosting=boosting, boost_from_average=average, **more), rows)


@pytest.mark.parametrize(
    "parameters",
    [{"objective": "regression", "reg_sqrt": True}, {"objective": "multiclassova", "sigmoid": 2.5}],
    ids=lambda parameters: list(parameters)[1],
)
def test_lightgbm_parameters_that_change_the_transform(reads, table, parameters):
    rows, target = table
    reads(light(rows, target, **parameters), rows)


def softmax_loss(scores: Array, classes: Array) -> tuple[Array, Array]:
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return shares - (classes[:, None].astype(int) == np.arange(scores.shape[1])), 2 * shares * (1 - shares)


@pytest.mark.filterwarnings("ignore:Cannot compute class probabilities")
def test_lightgbm_objectives_of_ones_own(reads, table):
    rows, target = table
    reads(
        light(rows, target, lambda scores, data: (scores - data.get_label(), np.ones_like(scores)), num_class=1), rows
    )
    several = light(rows, target, lambda scores, data: softmax_loss(scores, data.get_label()))
    reads(several, rows)
    assert read_model(several).signature.outputs[0].name == "score"
    quiet = {"n_estimators": 3, "verbose": -1, "n_jobs": 1}
    wrapped = lightgbm.LGBMClassifier(objective=lambda y, p: softmax_loss(p, y), **quiet).fit(rows, target)
    reads(wrapped, rows)
    raw = lightgbm.LGBMClassifier(objective=lambda y, p: (p - y, np.ones_like(p)), **quiet).fit(rows, target > 0)
    assert reads(raw, rows).signature.class_labels == ()


def framed(rows: Array, categories: list[Any]) -> pandas.DataFrame:
    frame = pandas.DataFrame(np.nan_to_num(rows), columns=list("abcdef"))
    codes = np.random.default_rng(0).integers(0, len(categories), len(rows))
    frame["c"] = pandas.Categorical.from_codes(codes, categories)
    return frame


def models_of_frame(frame: pandas.DataFrame, target: Array) -> list[Any]:
    label = target + frame["c"].cat.codes
    matrix = xgboost.DMatrix(frame, label=label, enable_categorical=True)
    loose = {"verbose": -1, "num_threads": 1, "min_data_per_group": 1, "cat_smooth": 1}
    return [
        xgboost.train({"max_depth": 4, "max_cat_to_onehot": 1, "nthread": 1}, matrix, 3),
        lightgbm.train({**loose, "objective": "regression"}, lightgbm.Dataset(frame, label=label), 3),
    ]


@pytest.mark.parametrize(
    ("categories", "message"), [(["x", "y", "z"], "that are text"), ([10, 20, 30], "other than 0, 1, 2")]
)
def test_categories_of_a_frame_must_be_the_numbers_that_trees_hold(table, categories, message):
    rows, target = table
    for model in models_of_frame(framed(rows, categories), target):
        with pytest.raises(UnsupportedError, match=message):
            read_model(model)


def test_categories_of_a_frame_that_count_from_zero(reads, table):
    rows, target = table
    frame = framed(rows, [0, 1, 2])
    given = frame.astype({"c": "float32"}).to_numpy(np.float32)
    for model in models_of_frame(frame, target):
        payload = reads(model, given).payload
        assert isinstance(payload, Forest)
        assert any(tree.categories for tree in payload.trees)
