"""Reading models: files, labels and names, and every kind of input that must be refused with a clear error."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import onnx
import pytest
import treelite
import xgboost
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from sklearn import ensemble, linear_model, pipeline, preprocessing

from outrider.compiler.frontends import FRONTENDS, ReadOptions, frontend, read_model
from outrider.compiler.trees.forest import Forest
from outrider.runtime.errors import BadInputError, BadModelError, NotFoundError, UnsupportedError, UsageError


@pytest.fixture(scope="module")
def booster(table: Any) -> xgboost.Booster:
    rows, target = table
    return xgboost.train({"objective": "binary:logistic", "max_depth": 3}, xgboost.DMatrix(rows, label=target > 0), 4)


@pytest.fixture(scope="module")
def light(table: Any) -> lightgbm.Booster:
    rows, target = table
    return lightgbm.train({"objective": "binary", "verbose": -1}, lightgbm.Dataset(rows, label=target > 0), 4)


@pytest.fixture(scope="module")
def files(booster: Any, light: Any, tmp_path_factory: Any) -> dict[str, Path]:
    """A good file of each format, by its suffix."""
    folder = tmp_path_factory.mktemp("models")
    paths = {suffix: folder / f"model.{suffix}" for suffix in ("ubj", "json", "txt", "tl")}
    booster.save_model(paths["ubj"])
    booster.save_model(paths["json"])
    light.save_model(paths["txt"])
    treelite.frontend.from_xgboost(booster).serialize(paths["tl"])
    return paths


@pytest.mark.parametrize("name", FRONTENDS)
def test_every_frontend_of_the_table_reads(name):
    made = frontend(name)
    assert callable(made.read_object)
    assert callable(made.read_file)


@pytest.mark.parametrize("suffix", ["ubj", "json", "txt", "tl"])
def test_files_are_read_by_suffix_and_by_content(files, suffix, tmp_path):
    by_suffix = read_model(files[suffix])
    renamed = tmp_path / "model"
    renamed.write_bytes(files[suffix].read_bytes())
    by_content = read_model(renamed)
    assert by_suffix.sha256 == by_content.sha256
    assert isinstance(by_suffix.payload, Forest)
    assert len(by_suffix.payload.trees) == 4
    assert by_suffix.signature.predict == "score"


@pytest.mark.parametrize("suffix", ["ubj", "json", "txt", "tl"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.floats(0, 0.999))
def test_a_truncated_file_is_a_bad_model(files, suffix, tmp_path, part):
    data = files[suffix].read_bytes()
    if suffix == "txt":  # what stands behind the parameters is of no use to a prediction
        data = data[: data.index(b"end of parameters")]
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(BadModelError):
        read_model(cut)


@pytest.mark.parametrize("suffix", ["ubj", "json", "txt", "tl", "onnx", "bin"])
def test_garbage_is_a_bad_model(suffix, tmp_path):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(b"\x01\x02 no model at all " * 10)
    with pytest.raises(BadModelError, match=r"model\.|ONNX"):
        read_model(path)


def test_json_that_is_no_model(tmp_path):
    path = tmp_path / "model.json"
    path.write_text('{"a": 1}')
    with pytest.raises(BadModelError, match="not an XGBoost model"):
        read_model(path)


def test_a_changed_lightgbm_file_is_a_bad_model(files, tmp_path):
    path = tmp_path / "model.txt"
    path.write_text(files["txt"].read_text().replace("Tree=2\n", "Tree=2\nx=1\n"))
    with pytest.raises(BadModelError, match="cut off or were changed"):
        read_model(path)


def test_paths_that_are_no_model(tmp_path):
    with pytest.raises(NotFoundError):
        read_model(tmp_path / "none.ubj")
    with pytest.raises(BadModelError, match=r"model\.toml"):
        read_model(tmp_path)
    (tmp_path / "empty.ubj").touch()
    with pytest.raises(BadModelError, match="empty"):
        read_model(tmp_path / "empty.ubj")


def test_zero_trees(table):
    rows, target = table
    empty = xgboost.train({}, xgboost.DMatrix(rows, label=target), 0)
    with pytest.raises(BadModelError, match="zero trees"):
        read_model(empty)


def test_models_that_are_not_fitted():
    for model in (xgboost.XGBClassifier(), lightgbm.LGBMClassifier(), ensemble.RandomForestClassifier()):
        with pytest.raises(BadModelError, match="not fitted"):
            read_model(model)


@pytest.mark.filterwarnings("ignore")
def test_unsupported_models_name_what_is_supported(table, tmp_path):
    rows, target = table
    filled = np.nan_to_num(rows)
    linear = xgboost.train({"booster": "gblinear"}, xgboost.DMatrix(filled, label=target), 2)
    with pytest.raises(UnsupportedError, match=r"gblinear.*gbtree and dart"):
        read_model(linear)
    trees = lightgbm.train({"linear_tree": True, "verbose": -1}, lightgbm.Dataset(filled, label=target), 2)
    with pytest.raises(UnsupportedError, match="linear trees"):
        read_model(trees)
    with pytest.raises(UnsupportedError, match=r"LinearRegression.*XGBoost"):
        read_model(linear_model.LinearRegression().fit(filled, target))
    steps = pipeline.make_pipeline(preprocessing.StandardScaler(), ensemble.RandomForestClassifier(2))
    with pytest.raises(UnsupportedError, match="compile the model inside it"):
        read_model(steps.fit(filled, target))
    with pytest.raises(UnsupportedError, match=r"builtins\.dict"):
        read_model({"trees": []})
    catboost = tmp_path / "model.cbm"
    catboost.write_bytes(b"CBM1....")
    with pytest.raises(UnsupportedError, match="CatBoost"):
        read_model(catboost)
    old = tmp_path / "model.bin"
    old.write_bytes(b"binf....")
    with pytest.raises(UnsupportedError, match="old binary format"):
        read_model(old)


def test_a_pickle_is_refused_unless_trusted(table, tmp_path):
    rows, target = table
    model = ensemble.RandomForestClassifier(3, random_state=0).fit(rows, target)
    plain, packed = tmp_path / "model.pkl", tmp_path / "model.joblib"
    plain.write_bytes(pickle.dumps(model))
    joblib.dump(model, packed, compress=3)
    for path in (plain, packed):
        with pytest.raises(BadInputError, match="trust-pickle"):
            read_model(path)
        assert read_model(path, ReadOptions(trust_pickle=True)).framework == "sklearn"
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x04 no pickle")
    with pytest.raises(BadModelError, match="unpickled"):
        read_model(tmp_path / "bad.pkl", ReadOptions(trust_pickle=True))


def test_a_missing_framework_is_named(monkeypatch, files):
    monkeypatch.setitem(FRONTENDS, "xgboost", "a_package_that_is_not_there:Frontend")
    with pytest.raises(UsageError, match="a_package_that_is_not_there"):
        read_model(files["ubj"])


def test_labels_and_names(table, booster):
    rows, target = table
    assert read_model(booster).signature.class_labels == (0, 1)
    told = read_model(booster, ReadOptions(class_labels=("ok", "fraud"), feature_names=tuple("abcdef"))).signature
    assert told.class_labels == ("ok", "fraud")
    assert [(spec.name, spec.dtype) for spec in told.outputs] == [("score", "float32"), ("label", "string")]
    assert told.feature_names == tuple("abcdef")
    names = np.array(["a", "b", "c"])[target]
    signature = read_model(ensemble.RandomForestClassifier(3).fit(rows, names)).signature
    assert (signature.predict, signature.class_labels) == ("probabilities", ("a", "b", "c"))
    assert signature.outputs[0].shape == (None, 3)
    floats = read_model(ensemble.RandomForestClassifier(3).fit(rows, target * 1.0)).signature
    assert floats.class_labels == (0, 1, 2)
    flags = read_model(ensemble.RandomForestClassifier(3).fit(rows, target > 0)).signature
    assert flags.class_labels == (0, 1)


def test_labels_and_names_that_do_not_fit(booster):
    with pytest.raises(BadModelError, match="3 class labels for a model of 2"):
        read_model(booster, ReadOptions(class_labels=(1, 2, 3)))
    with pytest.raises(BadModelError, match="2 feature names for a model of 6"):
        read_model(booster, ReadOptions(feature_names=("a", "b")))
    with pytest.raises(BadModelError, match="same name"):
        read_model(booster, ReadOptions(feature_names=("a",) * 6))


def test_margins_have_no_label(table):
    rows, target = table
    matrix = xgboost.DMatrix(rows, label=target > 0)
    for objective in ("binary:logitraw", "reg:squarederror"):
        signature = read_model(xgboost.train({"objective": objective}, matrix, 2)).signature
        assert [spec.name for spec in signature.outputs] == ["score"]


def graph(nodes: Any, inputs: Any, outputs: Any, initializers: Any = ()) -> onnx.ModelProto:
    made = helper.make_graph(nodes, "g", inputs, outputs, initializer=list(initializers))
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    return model


def tensor(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def test_onnx_signature():
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], np.ones(8))
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["probabilities"])],
        [tensor("x", ["n", 4])],
        [tensor("h", ["n", 2]), tensor("probabilities", [None, None])],
        [weights],
    )
    read = read_model(model, ReadOptions(class_labels=("a", "b")))
    signature = read.signature
    assert signature.predict == "probabilities"
    assert [(spec.name, spec.shape) for spec in signature.outputs] == [
        ("h", (None, 2)),
        ("probabilities", (None, 2)),
        ("label", (None,)),
    ]
    assert read.computed == ("h", "probabilities")


def test_onnx_models_that_are_refused(tmp_path):
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    cases = {
        "BFLOAT16": graph(relu, [tensor("x", ["n", 2], TensorProto.BFLOAT16)], [tensor("y", ["n", 2], 16)]),
        "cannot run": graph(
            [helper.make_node("Reshape", ["x", "s"], ["y"])],
            [tensor("x", ["n", 2])],
            [tensor("y", [3, 1])],
            [helper.make_tensor("s", TensorProto.INT64, [2], [3, 1])],
        ),
    }
    for message, model in cases.items():
        with pytest.raises(UnsupportedError, match=message):
            read_model(model)
    with pytest.raises(BadModelError, match="size of axis 1 of the ONNX input 'x' is free"):
        read_model(graph(relu, [tensor("x", ["n", "m"])], [tensor("y", ["n", "m"])]))
    with pytest.raises(BadModelError, match="no operators"):
        read_model(graph([], [tensor("x", ["n", 2])], [tensor("x", ["n", 2])]))
    with pytest.raises(BadModelError, match="not valid"):
        read_model(graph([helper.make_node("Relu", ["z"], ["y"])], [tensor("x", ["n", 2])], [tensor("y", ["n", 2])]))
    good = graph(relu, [tensor("x", ["n", 2])], [tensor("y", ["n", 2])]).SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(good[:-9])
    with pytest.raises(BadModelError):
        read_model(tmp_path / "cut.onnx")
