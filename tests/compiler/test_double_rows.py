"""Compiled models on float64 rows: what the source library gives for the same doubles, however near to a threshold."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import onnx
import onnxruntime
import pandas
import pytest
import treelite
import xgboost
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from sklearn import ensemble, pipeline, preprocessing

from outrider.compiler import compile_model
from outrider.compiler.backends import native
from outrider.compiler.trees.narrow import narrow
from outrider.runtime import load
from outrider.runtime.errors import ParityError

Array = np.ndarray
EXAMPLES = settings(
    max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LIGHT = {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 2, "min_data_in_bin": 1, "num_leaves": 12}
CLOSE = np.array([0.1, 0.1 + 1e-12, 0.1 - 1e-12, 0.1 + 2e-12, 7.0])  # all but the last between the same two float32
NEAR_ZERO = np.array([0.0, -0.0, 1e-40, -1e-40, 1e-35, -1e-35, 1.0000000018e-35, 1.00000002e-35, -1.00000002e-35, 1.0])


def data(seed: int) -> tuple[Array, Array]:
    """Of four features: any doubles, numbers too close for float32, tiny ones, and times of one second in seconds."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(300, 4)) * 10.0 ** rng.integers(-2, 3, 4)
    rows[:, 1], rows[:, 2] = rng.choice(CLOSE, 300), rng.choice(NEAR_ZERO, 300)
    rows[:, 3] = 1.7e9 + rng.random(300)
    target = rng.normal(size=300) + (rows[:, 0] > 0) + 3 * (rows[:, 1] > 0.1) + 2 * (rows[:, 2] > 0)
    return rows, target + 3 * (rows[:, 3] > 1.7e9 + 0.5)


def beside(rows: Array, seed: int) -> Array:
    """The rows, moved a little: by nothing, one double or less than a float32; with some missing."""
    rng = np.random.default_rng(seed)
    steps = rng.choice([0.0, 2.0**-52, -(2.0**-52), 1e-13, -1e-9, 2e-8], rows.shape)
    moved = np.concatenate([rows, rows * (1 + steps)])
    moved[rng.random(moved.shape) < 0.02] = np.nan
    return moved


def light(rows: Array, target: Array, categories: tuple[int, ...] = (), **parameters: Any) -> lightgbm.Booster:
    set_ = lightgbm.Dataset(rows, label=target, categorical_feature=list(categories))
    return lightgbm.train({**LIGHT, **parameters}, set_, 8)


@EXAMPLES
@given(st.integers(0, 2**16), st.sampled_from([{}, {"zero_as_missing": True}, {"use_missing": False}]))
def test_lightgbm(agree_on_doubles, seed, parameters):
    rows, target = data(seed)
    booster = light(rows, target, **parameters)
    found = agree_on_doubles(booster, beside(rows, seed), expected=booster.predict)
    assert 3 in found.ranked, "two thresholds between the same two float32"
    assert 0 not in found.ranked


@pytest.mark.parametrize("parameters", [{}, {"zero_as_missing": True}])
def test_lightgbm_around_its_zero(agree_on_doubles, parameters):
    """LightGBM compares doubles with the float32 nearest to 1e-35."""
    rows = np.repeat(NEAR_ZERO, 10)[:, None]
    booster = light(rows, np.repeat(np.arange(10) ** 2, 10), **parameters)
    agree_on_doubles(booster, rows, beside(rows, 1), expected=booster.predict)


def coded(seed: int, **options: Any) -> tuple[Array, Array]:
    rows, target = data(seed)
    rows[:, 1] = np.random.default_rng(seed).integers(0, 12, len(rows))
    return rows, target + np.isin(rows[:, 1], [2, 3, 7, 11]) * 4


def odd_categories(rows: Array) -> Array:
    odd = [0.0, -0.0, -1e-300, -0.5, -1.0, -1 + 1e-16, 2.999999999999999, 3.0, 3.0000000000000004, 1e300, -1e300]
    found = np.resize(rows, (len(odd) * 4, rows.shape[1]))
    found[:, 1] = np.resize([*odd, 11.5, 12.0, 2.0**24, 2.0**32 + 3, np.nan], len(found))
    return found


def test_lightgbm_categories(agree_on_doubles):
    rows, target = coded(1)
    booster = light(rows, target, (1,), min_data_per_group=1, cat_smooth=1, max_cat_to_onehot=1)
    found = agree_on_doubles(booster, beside(rows, 1), odd_categories(rows), expected=booster.predict)
    assert found.categories == (1,)
    labels = np.digitize(target, [0, 4])
    booster = light(rows, labels, (1,), objective="multiclass", num_class=3, min_data_per_group=1)
    agree_on_doubles(booster, odd_categories(rows), expected=booster.predict)


@EXAMPLES
@given(st.integers(0, 2**16))
def test_histogram_gradient_boosting(agree_on_doubles, seed):
    rows, target = data(seed)
    made = ensemble.HistGradientBoostingRegressor(max_iter=6, min_samples_leaf=2, early_stopping=False)
    fitted = made.fit(rows, target)
    found = agree_on_doubles(fitted, beside(rows, seed), expected=fitted.predict)
    assert 3 in found.ranked


def test_histogram_gradient_boosting_with_categories(agree_on_doubles):
    rows, target = coded(2)
    made = ensemble.HistGradientBoostingClassifier(
        categorical_features=[1], max_iter=6, min_samples_leaf=2, early_stopping=False
    )
    fitted = made.fit(rows, np.digitize(target, [0, 4]))
    found = agree_on_doubles(fitted, beside(rows, 1), odd_categories(rows), expected=fitted.predict_proba)
    assert found.categories == (1,)


SINGLE_PRECISION = {
    "XGBoost": xgboost.XGBRegressor(n_estimators=6, n_jobs=1, max_depth=5),
    "forest": ensemble.RandomForestRegressor(5, random_state=0),
    "boosting": ensemble.GradientBoostingRegressor(n_estimators=6),
    "isolation": ensemble.IsolationForest(n_estimators=6, random_state=0),
}


@pytest.mark.parametrize("name", SINGLE_PRECISION)
def test_libraries_that_round_first(agree_on_doubles, name):
    rows, target = data(3)
    fitted = SINGLE_PRECISION[name].fit(rows, target)
    predict = getattr(fitted, "score_samples" if name == "isolation" else "predict")
    wide = np.nan_to_num(beside(rows, 3))
    halves = (rows.astype(np.float32).astype(float) + np.nextafter(rows.astype(np.float32), np.float32(9e9))) / 2
    found = agree_on_doubles(fitted, wide, halves, expected=predict)
    assert found.nearest


def test_what_rounds_to_infinity(agree_on_doubles):
    """XGBoost's wrappers and isolation forests take it."""
    rows, target = data(4)
    last, beyond = 3.4028235677973362e38, 3.402823567797337e38
    far = np.resize([last, -last, beyond, -beyond, 1e300, -1e300, 1e-300], (70, 4))
    with np.errstate(over="ignore"):
        for name, method in (("XGBoost", "predict"), ("isolation", "score_samples")):
            fitted = SINGLE_PRECISION[name].fit(rows, target)
            agree_on_doubles(fitted, far, expected=getattr(fitted, method))


@pytest.mark.parametrize("kind", ["float64", "float32"])
def test_treelite(agree_on_doubles, kind):
    rows, target = data(5)
    if kind == "float64":
        model = treelite.frontend.from_lightgbm(light(rows, target))
    else:
        model = treelite.frontend.from_xgboost(xgboost.train({"nthread": 1}, xgboost.DMatrix(rows, target), 6))
    found = agree_on_doubles(
        model, beside(rows, 5), expected=lambda x: treelite.gtil.predict(model, np.ascontiguousarray(x.astype(kind)))
    )
    assert found.nearest == (kind == "float32")


def onnx_run(model: onnx.ModelProto, kind: type) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda rows: session.run(["y"], {"x": rows.astype(kind)})[0]


def stumps(values: list[float], modes: list[str]) -> onnx.ModelProto:
    """A graph of doubles: a tree of one split for each value and each comparison, all on one feature."""
    pairs = [(value, mode) for value in values for mode in modes]
    count = len(pairs)
    trees = np.arange(count)
    doubles = {
        "nodes_values_as_tensor": np.array([v for value, _ in pairs for v in (value, 0.0, 0.0)]),
        "target_weights_as_tensor": np.arange(2.0 * count) ** 2,
    }
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["s"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=np.repeat(trees, 3).tolist(),
        nodes_nodeids=[0, 1, 2] * count,
        nodes_modes=[name for _, mode in pairs for name in (f"BRANCH_{mode}", "LEAF", "LEAF")],
        nodes_featureids=[0] * (3 * count),
        nodes_truenodeids=[1, 0, 0] * count,
        nodes_falsenodeids=[2, 0, 0] * count,
        nodes_missing_value_tracks_true=[1, 0, 0, 0, 0, 0] * (count // 2) + [0] * (3 * (count % 2)),
        target_treeids=np.repeat(trees, 2).tolist(),
        target_nodeids=[1, 2] * count,
        target_ids=[0] * (2 * count),
        **{name: numpy_helper.from_array(values, name) for name, values in doubles.items()},
    )
    cast = helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT)
    given = helper.make_tensor_value_info("x", TensorProto.DOUBLE, ["n", 1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(
        helper.make_graph([node, cast], "g", [given], [result]), opset_imports=opsets, ir_version=10
    )


def test_an_onnx_graph_of_doubles(agree_on_doubles):
    """Tests for equality with 3 are by category, those with 0.1 two comparisons: on one feature."""
    for values, modes, ranked in (
        ([0.1, 2.5, 1e300, -5e-324], ["LEQ", "LT", "GT", "GTE"], (0,)),
        ([0.1], ["EQ", "NEQ"], (0,)),
        ([3.0, 0.0, 7.0], ["EQ", "LEQ", "LT"], (0,)),
        ([0.1, 2.5, 3.0], ["LEQ"], ()),
        ([3.0, 4.0], ["LT"], ()),
    ):
        model = stumps(values, modes)
        rows = np.random.default_rng(1).choice([0.1, 0.1 + 1e-12, 3.0, 2.9999999999999996, -0.0, 7.5], (200, 1))
        found = agree_on_doubles(model, rows, beside(rows, 1), expected=onnx_run(model, np.float64))
        assert found.ranked == ranked, values


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_an_onnx_graph_of_doubles_with_a_scaler(agree_on_doubles):
    """Its thresholds are those on the doubles before the scaler, which it rounds to float32 behind it."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import DoubleTensorType

    rows, target = data(6)
    rows = rows[:, [0, 2]]
    fitted = pipeline.make_pipeline(preprocessing.StandardScaler(), ensemble.GradientBoostingRegressor(n_estimators=5))
    exported = to_onnx(
        fitted.fit(rows, target),
        initial_types=[("x", DoubleTensorType([None, 2]))],
        final_types=[("y", DoubleTensorType([None, 1]))],
        target_opset={"": 18, "ai.onnx.ml": 3},
    )
    found = agree_on_doubles(exported, np.nan_to_num(beside(rows, 6)), expected=onnx_run(exported, np.float64))
    assert not found.nearest


# Whole compiles ------------------------------------------------------------------------------------------------------


def test_a_session_decides_as_the_source_does(tmp_path):
    """Also with float32 rows of a model in which a feature is ranked, and with the kernels that measuring picks."""
    rows, target = data(7)
    names = list("abcd")
    fitted = ensemble.HistGradientBoostingRegressor(max_iter=20, early_stopping=False)
    frame = pandas.DataFrame(rows, columns=names)
    fitted.fit(frame, target)
    compile_model(fitted, out=tmp_path / "x.orb", name="x", version="1")
    with load(tmp_path / "x.orb") as session:
        assert session.takes_doubles
        near = beside(rows, 7)
        for batch in (rows, near, near[:1], near[:40]):
            wanted = fitted.predict(pandas.DataFrame(batch, columns=names))
            assert np.allclose(session.predict(np.ascontiguousarray(batch)), wanted, rtol=1e-5, atol=1e-6)
            assert np.allclose(session.predict(np.asfortranarray(batch)), wanted, rtol=1e-5, atol=1e-6)
            shuffled = pandas.DataFrame(batch, columns=names)[list("dbca")]
            assert np.array_equal(session.predict(shuffled), session.predict(batch))
        single = rows.astype(np.float32)
        wanted = fitted.predict(pandas.DataFrame(single, columns=names))
        assert np.allclose(session.predict(single), wanted, rtol=1e-5, atol=1e-6)
        assert not np.allclose(session.predict(single), session.predict(rows), rtol=1e-2)


@pytest.mark.parametrize(("decides_in", "other"), [("float64", "float32"), ("float32", "float64")])
def test_a_bundle_that_decides_doubles_otherwise_is_not_written(tmp_path, monkeypatch, decides_in, other):
    """Rounded to the nearest where the source compares doubles, or compared as doubles where it rounds."""
    rows, target = data(8)
    rows = rows[:, :1]
    if decides_in == "float64":
        source: Any = light(rows, target)
    else:
        source = xgboost.train({"nthread": 1}, xgboost.DMatrix(rows, target), 6)
    monkeypatch.setattr(native, "narrow", lambda forest, kind: narrow(forest, other))
    with pytest.raises(ParityError, match="float64 rows: 'score' disagrees"):
        compile_model(source, out=tmp_path / "x.orb", target="aarch64", name="x", version="1")
    assert not (tmp_path / "x.orb").exists()
