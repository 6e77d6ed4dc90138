"""Float64 rows: which libraries round them to float32 first, and `Tree.threshold` for those that do not."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pytest
import treelite
import xgboost
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn import ensemble

from outrider.compiler.frontends import read_model
from outrider.compiler.trees.forest import NUMERIC, Forest

Array = np.ndarray
EXAMPLES = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LIGHT = {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 2, "min_data_in_bin": 1, "num_leaves": 12}


def data(seed: int) -> tuple[Array, Array]:
    """Doubles of three features that float32 rounds, subnormals of float32 and zeros among them."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(150, 3)) * 10.0 ** rng.integers(-2, 3, 3)
    rows[:, 2] = rng.choice(
        [0.1, 0.1 + 1e-12, 0.1 - 1e-12, 0.0, -0.0, 1e-40, -1e-40, 1e-35, 1.0000000018e-35, 7.0], 150
    )
    return rows, rng.normal(size=150) + (rows[:, 2] > 0.1) + (rows[:, 0] > 0)


def between(forest: Forest, seed: int, count: int = 600) -> Array:
    """Doubles between the two float32 values on either side of a threshold, the threshold and its neighbours."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, forest.features))
    for feature in range(forest.features):
        parts = [tree.threshold[(tree.kind == NUMERIC) & (tree.feature == feature)] for tree in forest.trees]
        found = np.concatenate(parts)
        if len(found):
            limits = rng.choice(found, count)
            single = limits.astype(np.float32)
            low, high = (np.nextafter(single, np.float32(end)).astype(float) for end in (-np.inf, np.inf))
            near = [limits, np.nextafter(limits, np.inf), np.nextafter(limits, -np.inf), -limits]
            rows[:, feature] = np.choose(
                rng.integers(0, 8, count), [*near, *[low + (high - low) * rng.random(count)] * 4]
            )
    rows[rng.random(rows.shape) < 0.02] = np.nan
    return rows


def hist(rows: Array, target: Array) -> Any:
    made = ensemble.HistGradientBoostingRegressor(max_iter=6, min_samples_leaf=2, early_stopping=False)
    return made.fit(rows, target)


def light(rows: Array, target: Array, **parameters: Any) -> lightgbm.Booster:
    return lightgbm.train({**LIGHT, **parameters}, lightgbm.Dataset(rows, label=target), 6)


@EXAMPLES
@given(st.integers(0, 2**16), st.sampled_from([{}, {"zero_as_missing": True}, {"use_missing": False}]))
def test_lightgbm_decides_on_doubles(sums, seed, parameters):
    rows, target = data(seed)
    booster = light(rows, target, **parameters)
    model = read_model(booster)
    assert isinstance(model.payload, Forest)
    assert model.decides_in == "float64"
    doubles = np.concatenate([rows, between(model.payload, seed)])
    assert np.allclose(sums(model.payload, doubles)[:, 0], booster.predict(doubles), rtol=1e-12, atol=1e-12)
    singles = doubles.astype(np.float32)
    assert np.allclose(sums(model.payload, singles)[:, 0], booster.predict(singles), rtol=1e-12, atol=1e-12)


def test_lightgbms_zero_ends_at_the_float32_nearest_to_1e_35(sums):
    rows = np.repeat([[-3.0], [0.0], [3.0]], 20, axis=0)
    booster = light(rows, np.repeat([1.0, 5.0, 2.0], 20), zero_as_missing=True)
    model = read_model(booster)
    assert isinstance(model.payload, Forest)
    doubles = np.array(
        [[0.0], [1e-35], [1.00000001e-35], [1.00000002e-35], [-1.00000001e-35], [-1.00000002e-35], [1.0]]
    )
    found = booster.predict(doubles)
    assert np.allclose(sums(model.payload, doubles)[:, 0], found, rtol=1e-12)
    assert found[2] == found[4] == found[0]
    assert found[0] != found[3] == found[6]


@EXAMPLES
@given(st.integers(0, 2**16))
def test_histogram_gradient_boosting_decides_on_doubles(sums, seed):
    rows, target = data(seed)
    fitted = hist(rows, target)
    model = read_model(fitted)
    assert isinstance(model.payload, Forest)
    assert model.decides_in == "float64"
    doubles = np.concatenate([rows, between(model.payload, seed)])
    assert np.allclose(sums(model.payload, doubles)[:, 0], fitted.predict(doubles), rtol=1e-12, atol=1e-12)


def test_a_checkpoint_decides_in_the_type_of_its_thresholds(sums):
    rows, target = data(1)
    for made, kind in (
        (treelite.frontend.from_lightgbm(light(rows, target)), "float64"),
        (treelite.frontend.from_xgboost(boost(rows, target)), "float32"),
    ):
        model = read_model(made)
        assert model.decides_in == kind
        assert isinstance(model.payload, Forest)
        doubles = between(model.payload, 1).astype(kind)
        wanted = treelite.gtil.predict(made, doubles)[:, 0, 0]
        assert np.allclose(sums(model.payload, doubles)[:, 0], wanted, rtol=1e-5, atol=1e-6)


def boost(rows: Array, target: Array) -> xgboost.Booster:
    return xgboost.train({"max_depth": 4, "nthread": 1}, xgboost.DMatrix(rows, label=target), 6)


def single_precision_models() -> dict[str, Any]:
    return {
        "XGBoost": xgboost.XGBRegressor(n_estimators=5, n_jobs=1),
        "forest": ensemble.RandomForestRegressor(4, random_state=0),
        "trees": ensemble.ExtraTreesRegressor(4, random_state=0),
        "boosting": ensemble.GradientBoostingRegressor(n_estimators=5),
        "isolation": ensemble.IsolationForest(n_estimators=5, random_state=0),
    }


@pytest.mark.parametrize("name", single_precision_models())
def test_other_libraries_round_to_float32_first(sums, name):
    rows, target = data(2)
    fitted = single_precision_models()[name].fit(rows, target)
    model = read_model(fitted)
    assert model.decides_in == "float32"
    assert isinstance(model.payload, Forest)
    doubles = np.nan_to_num(between(model.payload, 2))
    singles = doubles.astype(np.float32)
    predict = getattr(fitted, "score_samples" if name == "isolation" else "predict")
    assert np.array_equal(predict(doubles), predict(singles))
    assert np.array_equal(sums(model.payload, singles), sums(model.payload, singles.astype(np.float64)))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("name", single_precision_models())
def test_doubles_beyond_float32(name):
    """What rounding makes infinite is taken by XGBoost's wrappers and isolation forests, and refused by the others."""
    rows, target = data(3)
    fitted = single_precision_models()[name].fit(rows, target)
    predict = getattr(fitted, "score_samples" if name == "isolation" else "predict")
    last, beyond = 3.4028235677973362e38, 3.402823567797337e38  # the first becomes the largest float32, the second inf
    assert np.isfinite(predict(np.full((1, 3), last))).all()
    takes = name in ("XGBoost", "isolation")
    assert read_model(fitted).accepts_inf == takes
    if takes:
        infinite = np.full((1, 3), np.inf, np.float32)
        assert np.array_equal(predict(np.full((1, 3), beyond)), predict(infinite))
    else:
        with pytest.raises(ValueError, match="too large for dtype"):
            predict(np.full((1, 3), beyond))


def test_a_dmatrix_rounds_and_refuses_infinities():
    rows, target = data(4)
    booster = boost(rows, target)
    model = read_model(booster)
    assert isinstance(model.payload, Forest)
    doubles = between(model.payload, 4)
    wide, single = (booster.predict(xgboost.DMatrix(given)) for given in (doubles, doubles.astype(np.float32)))
    assert np.array_equal(wide, single)
    with pytest.raises(xgboost.core.XGBoostError, match="inf"):
        xgboost.DMatrix(np.full((1, 3), 1e300))
