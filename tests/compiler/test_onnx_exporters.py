"""What exporters write for tree ensembles, against ONNX Runtime, and what of it is read as a Forest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
import onnxmltools
import pytest
import xgboost
from onnxmltools.convert.common.data_types import FloatTensorType
from skl2onnx import to_onnx
from skl2onnx.common.data_types import DoubleTensorType
from skl2onnx.common.data_types import FloatTensorType as SklearnFloats
from sklearn import ensemble, impute, pipeline, preprocessing, tree

from outrider.compiler.frontends import read_model
from outrider.compiler.model import OnnxGraph

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters' own
Array = np.ndarray
Make = Callable[[Array, Array], Any]
SMALL = {"n_estimators": 4, "max_depth": 3, "random_state": 0}


def scikit(
    estimator: Any, labels: Callable[[Array], Any] = lambda target: target, *, double: bool = False, **options: Any
) -> Make:
    def make(rows: Array, target: Array) -> Any:
        fitted = estimator.fit(rows, labels(target))
        kind = DoubleTensorType if double else SklearnFloats
        own = {id(fitted): options} if options else None
        types = [("x", kind([None, rows.shape[1]]))]
        return to_onnx(fitted, initial_types=types, options=own, target_opset={"": 18, "ai.onnx.ml": 3})

    return make


def boosted(objective: str, label: Callable[[Array], Array] = lambda target: target) -> Make:
    def make(rows: Array, target: Array) -> Any:
        parameters = {"objective": objective, "max_depth": 3, "nthread": 1}
        if objective.startswith("multi"):
            parameters["num_class"] = 3
        booster = xgboost.train(parameters, xgboost.DMatrix(rows, label=label(target)), 3)
        return onnxmltools.convert_xgboost(booster, initial_types=[("x", FloatTensorType([None, rows.shape[1]]))])

    return make


def light(
    objective: str,
    label: Callable[[Array], Array] = lambda target: target,
    *,
    categories: tuple[int, ...] = (),
    **more: Any,
) -> Make:
    def make(rows: Array, target: Array) -> Any:
        data = lightgbm.Dataset(rows, label=label(target), categorical_feature=list(categories))
        parameters = {"objective": objective, "verbose": -1, "num_leaves": 6, "num_threads": 1, **more}
        booster = lightgbm.train(parameters, data, 3)
        types = [("x", FloatTensorType([None, rows.shape[1]]))]
        return onnxmltools.convert_lightgbm(booster, initial_types=types)

    return make


def binary(target: Array) -> Array:
    return (target > 0).astype(int)


def several(target: Array) -> Array:
    return np.stack([target, binary(target)], axis=1)


SCALED = pipeline.make_pipeline(
    impute.SimpleImputer(), preprocessing.StandardScaler(), ensemble.RandomForestClassifier(**SMALL)
)
RANGED = pipeline.make_pipeline(
    preprocessing.MinMaxScaler(), preprocessing.RobustScaler(), ensemble.RandomForestRegressor(**SMALL)
)
FORESTS: dict[str, Make] = {
    "forest": scikit(ensemble.RandomForestClassifier(**SMALL), zipmap=False),
    "forest with maps": scikit(ensemble.RandomForestClassifier(**SMALL)),
    "forest of two classes": scikit(ensemble.RandomForestClassifier(**SMALL), binary, zipmap=False),
    "forest of text labels": scikit(
        ensemble.ExtraTreesClassifier(**SMALL), lambda target: np.array(["a", "b", "c"])[target], zipmap=False
    ),
    "forest of doubles": scikit(ensemble.RandomForestClassifier(**SMALL), double=True, zipmap=False),
    "regression forest": scikit(ensemble.RandomForestRegressor(**SMALL)),
    "regression of several targets": scikit(ensemble.ExtraTreesRegressor(**SMALL), several),
    "tree": scikit(tree.DecisionTreeClassifier(max_depth=3), zipmap=False),
    "boosting": scikit(ensemble.GradientBoostingClassifier(**SMALL), zipmap=False),
    "boosting of two classes": scikit(ensemble.GradientBoostingClassifier(**SMALL), binary, zipmap=False),
    "boosting regression": scikit(ensemble.GradientBoostingRegressor(**SMALL)),
    "imputer and scaler": scikit(SCALED, zipmap=False),
    "two scalers": scikit(RANGED),
    "xgboost of two classes": boosted("binary:logistic", binary),
    "xgboost of three classes": boosted("multi:softprob"),
    "xgboost regression": boosted("reg:squarederror"),
    "xgboost counts": boosted("count:poisson"),
    "lightgbm of two classes": light("binary", binary),
    "lightgbm of three classes": light("multiclass", num_class=3),
    "lightgbm regression": light("regression"),
    "lightgbm counts": light("poisson"),
    "lightgbm categories": light(
        "regression", categories=(3,), min_data_per_group=1, cat_smooth=1, max_cat_to_onehot=1
    ),
}
GRAPHS: dict[str, tuple[Make, str]] = {
    "isolation forest": (
        scikit(ensemble.IsolationForest(n_estimators=2, random_state=0), lambda target: None),
        "2 tree operators",
    ),
    "classifier of several targets": (
        scikit(ensemble.RandomForestClassifier(**SMALL), several, zipmap=False),
        "4 tree operators",
    ),
    "columns of probabilities": (scikit(ensemble.RandomForestClassifier(**SMALL), zipmap="columns"), "Slice"),
}


@pytest.fixture(scope="module")
def data(table: tuple[Array, Array]) -> tuple[Array, Array]:
    rows, target = np.nan_to_num(table[0]), table[1]
    rows[:, 3] = np.abs(rows[:, 3])
    return rows, target


@pytest.mark.parametrize("name", FORESTS)
def test_forests(reads, data, name):
    rows, target = data
    model = reads(FORESTS[name](rows, target), rows)
    assert model.framework == "onnx"
    assert model.decides_in == ("float64" if "doubles" in name else "float32")


@pytest.mark.parametrize("name", ["forest with maps", "boosting of two classes", "lightgbm categories", "two scalers"])
def test_forests_compiled(agree, data, name):
    rows, target = data
    agree(FORESTS[name](rows, target), rows)


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(data, name):
    rows, target = data
    make, message = GRAPHS[name]
    payload = read_model(make(rows, target)).payload
    assert isinstance(payload, OnnxGraph)
    assert message in payload.no_forest
