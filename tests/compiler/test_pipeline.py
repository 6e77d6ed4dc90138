"""compile_model from end to end: what is in the bundle, what the session gives, and what writes no bundle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pandas
import pytest
import xgboost
from onnx import TensorProto, helper
from sklearn import ensemble

from outrider.compiler import compile_model, pipeline
from outrider.compiler.backends import BACKENDS, Order, backend
from outrider.compiler.frontends import read_model
from outrider.compiler.modeldir import ModelCard, RunInfo, write_model_dir
from outrider.runtime import load
from outrider.runtime.bundle import decode_npy, open_bundle
from outrider.runtime.errors import (
    BadBundleError,
    BadDataError,
    BadInputError,
    BadModelError,
    GoalUnmetError,
    NotFoundError,
    ParityError,
    UnsupportedError,
    UsageError,
)
from outrider.runtime.features.plan import FeaturePlan, FeatureStep, RawColumn
from outrider.runtime.profile import decode_baseline
from outrider.targets import get_target

NAMED = {"name": "fraud", "version": "1"}


@pytest.fixture(scope="module")
def booster(table: Any) -> xgboost.Booster:
    rows, target = table
    return xgboost.train({"objective": "binary:logistic", "max_depth": 3}, xgboost.DMatrix(rows, label=target > 0), 5)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few repetitions: these tests look at what is measured, not at how well."""
    from outrider.compiler import measure

    monkeypatch.setattr(measure, "_ROUNDS", 3)
    monkeypatch.setattr(measure, "_LOOP_NS", 20_000)
    monkeypatch.setattr(measure, "_CALLS", 20)


def test_a_bundle_with_calibration(table, booster, tmp_path):
    rows, _ = table
    stages: list[str] = []
    out = tmp_path / "fraud.orb"
    report = compile_model(booster, out=out, calibration=rows, progress=stages.append, **NAMED)
    manifest = open_bundle(out).manifest
    assert manifest == report.manifest
    assert report.path == out
    chosen = [record for record in report.candidates if record.outcome == "chosen"]
    assert [record.rank for record in chosen] == [1]
    assert [found.batch for found in chosen[0].measured] == [1, 64, 1024]
    assert chosen[0].parity is not None
    assert chosen[0].parity.evidence == "calibration"
    assert {record.backend: record.outcome for record in report.candidates}["ort"] == "not eligible"
    table_text = report.table()
    assert all(record.id in table_text and record.reason in table_text for record in report.candidates)
    assert "measuring" in stages
    assert manifest.baseline is not None
    assert decode_baseline(open_bundle(out).read(manifest.baseline)).rows == len(rows)
    with load(out) as session:
        expected = booster.predict(xgboost.DMatrix(rows))
        assert np.allclose(session.predict(rows), expected, rtol=1e-5, atol=1e-6)
        assert session.run({"features": rows})["label"].tolist() == (expected > 0.5).astype(int).tolist()
        assert session.predict(np.zeros((0, 6), np.float32)).shape == (0,)


def test_golden_vectors_are_the_sources_own(table, booster, tmp_path):
    rows, _ = table
    compile_model(booster, out=tmp_path / "x.orb", calibration=rows.astype(np.float64), **NAMED)
    bundle = open_bundle(tmp_path / "x.orb")
    golden = bundle.manifest.golden
    assert golden.rows == 64
    inputs = decode_npy(bundle.read(golden.inputs["features"]))
    assert all(any(np.array_equal(row, other, equal_nan=True) for other in rows) for row in inputs)
    assert np.array_equal(decode_npy(bundle.read(golden.outputs["score"])), booster.predict(xgboost.DMatrix(inputs)))


def test_without_calibration_rows_are_made_and_the_report_says_so(booster, tmp_path):
    report = compile_model(booster, out=tmp_path / "x.orb", **NAMED)
    assert report.manifest.evidence == "thresholds"
    assert report.manifest.baseline is None
    assert "the model's own thresholds" in report.table()
    with pytest.raises(UsageError, match="needs real rows"):
        compile_model(booster, out=tmp_path / "y.orb", goals=["accuracy>=0.5"], **NAMED)


def test_text_labels_of_a_classifier(table, tmp_path):
    rows, target = table
    names = np.array(["low", "mid", "high"])[target]
    model = ensemble.RandomForestClassifier(5, random_state=0).fit(rows, names)
    compile_model(model, out=tmp_path / "x.orb", calibration=rows, **NAMED)
    with load(tmp_path / "x.orb") as session:
        result = session.run({"features": rows})
    assert np.allclose(result["probabilities"], model.predict_proba(rows), atol=1e-6)
    assert result["label"].tolist() == model.predict(rows).tolist()


def test_forms_of_calibration(table, booster, tmp_path):
    rows, target = table
    frame = pandas.DataFrame(rows.astype(np.float64), columns=list("abcdef"))
    named = xgboost.train({}, xgboost.DMatrix(frame, label=target), 2)
    np.savez(tmp_path / "rows.npz", features=rows, label=target > 0)
    frame.to_parquet(tmp_path / "rows.parquet")
    shuffled = frame[list("fedcba")]
    wanted = None
    for given in (frame, shuffled, {"features": rows}, tmp_path / "rows.npz", str(tmp_path / "rows.parquet")):
        compile_model(named, target="aarch64", out=tmp_path / "x.orb", calibration=given, **NAMED)
        bundle = open_bundle(tmp_path / "x.orb")
        found = bundle.read(bundle.manifest.golden.inputs["features"])
        wanted = wanted or found
        assert found == wanted


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (np.zeros((3, 5)), r"shape \(3, 5\), expected \(n, 6\)"),
        (np.zeros(6), r"shape \(6,\)"),
        (np.zeros((0, 6)), "no rows"),
        (np.full((3, 6), "a"), "holds <U1"),
        ({"other": np.zeros((3, 6))}, "'other', which is no input"),
        ({}, "lacks the input 'features'"),
        ({"features": np.zeros((3, 6)), "label": np.zeros(2)}, "differ in length"),
    ],
)
def test_calibration_that_does_not_fit(booster, tmp_path, calibration, message):
    with pytest.raises(BadDataError, match=message):
        compile_model(booster, out=tmp_path / "x.orb", calibration=calibration, **NAMED)
    assert not list(tmp_path.iterdir())


def test_calibration_files_that_cannot_be_read(booster, tmp_path):
    for name in ("rows.npz", "rows.parquet"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 nothing")
        with pytest.raises(BadDataError, match="not a readable"):
            compile_model(booster, out=tmp_path / "x.orb", calibration=tmp_path / name, **NAMED)
    (tmp_path / "rows.csv").touch()
    with pytest.raises(BadDataError, match="not a calibration file"):
        compile_model(booster, out=tmp_path / "x.orb", calibration=tmp_path / "rows.csv", **NAMED)
    with pytest.raises(NotFoundError):
        compile_model(booster, out=tmp_path / "x.orb", calibration=tmp_path / "none.npz", **NAMED)


def test_a_frame_without_a_needed_column(table, tmp_path):
    rows, target = table
    frame = pandas.DataFrame(rows, columns=list("abcdef"))
    named = xgboost.train({}, xgboost.DMatrix(frame, label=target), 2)
    with pytest.raises(BadDataError, match="lacks the column 'c'"):
        compile_model(named, out=tmp_path / "x.orb", calibration=frame.drop(columns="c"), **NAMED)


def test_a_failed_parity_writes_no_bundle(table, booster, tmp_path, monkeypatch):
    rows, _ = table

    def wrong(source: Any, options: Any) -> Any:
        model = read_model(source, options)
        return replace(model, reference=lambda inputs: {"score": model.reference(inputs)["score"] + 2e-5})

    monkeypatch.setattr(pipeline, "read_model", wrong)
    with pytest.raises(ParityError, match="disagrees with the source model"):
        compile_model(booster, out=tmp_path / "x.orb", calibration=rows, **NAMED)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["host", "aarch64"])
def test_where_adding_in_another_order_shows_the_source_is_followed_step_by_step(tmp_path, target):
    """XGBoost adds in float32, tree by tree: of targets in the thousands that may show where results are near zero."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, 6)).astype(np.float32)
    matrix = xgboost.DMatrix(rows, (rows[:, 0] + rng.normal(size=2000)) * 1e6)
    booster = xgboost.train({"max_depth": 6, "eta": 0.1, "nthread": 1}, matrix, 100)
    report = compile_model(booster, target=target, out=tmp_path / "x.orb", name="x", version="1")
    outcomes = {record.id: record for record in report.candidates if record.backend == "native"}
    assert [key for key, record in outcomes.items() if record.rank == 1] == ["native-k2-lanes8"]
    others = [record for record in outcomes.values() if record.rank is None]
    assert any("disagrees with the source model" in record.reason for record in others)


def test_goals(table, booster, tmp_path):
    rows, target = table
    data = {"features": rows, "label": (target > 0).astype(float)}
    goals = ["p99<=10s", "size<=5MB", "accuracy>=base-0.01"]
    report = compile_model(booster, out=tmp_path / "x.orb", calibration=data, goals=goals, **NAMED)
    assert [goal.met for goal in report.manifest.goals] == [True, True, True]
    accuracy = np.mean((booster.predict(xgboost.DMatrix(rows)) > 0.5) == (target > 0))
    assert report.manifest.goals[2].measured == pytest.approx(accuracy)
    for goal in ("p50<=1ns", "size<=10B", "accuracy>=1.5"):
        with pytest.raises(GoalUnmetError, match="measured"):
            compile_model(booster, out=tmp_path / "y.orb", calibration=data, goals=[goal], **NAMED)
    assert not (tmp_path / "y.orb").exists()
    with pytest.raises(UsageError, match="cannot be measured for armv7"):
        compile_model(booster, target="armv7", out=tmp_path / "y.orb", goals=["p99<=1s"], **NAMED)
    data["label"] = np.where(target > 0, "yes", "no")
    with pytest.raises(BadDataError, match="'no' is no class of the model"):
        compile_model(booster, out=tmp_path / "y.orb", calibration=data, **NAMED)
    data["label"] = target
    regressor = xgboost.train({}, xgboost.DMatrix(rows, label=target), 2)
    with pytest.raises(UsageError, match="needs a classifier"):
        compile_model(regressor, out=tmp_path / "y.orb", calibration=data, goals=["accuracy>=0.1"], **NAMED)


def test_replaying_gives_the_same_bytes(table, booster, tmp_path):
    rows, _ = table
    first, second = tmp_path / "a.orb", tmp_path / "b.orb"
    sha256 = compile_model(booster, out=first, calibration=rows, goals=["p99<=10s"], **NAMED).sha256
    again = compile_model(booster, out=second, calibration=rows, goals=["p99<=10s"], replay_from=first, **NAMED)
    assert again.sha256 == sha256
    with pytest.raises(BadInputError, match="other goals"):
        compile_model(booster, out=second, calibration=rows, replay_from=first, **NAMED)
    with pytest.raises(BadInputError, match="another model or target"):
        compile_model(booster, target="aarch64", out=second, replay_from=first, **NAMED)


@pytest.mark.parametrize("name", [None, "", "a b", "../x", "x" * 129])
def test_names_that_a_bundle_cannot_have(booster, tmp_path, name):
    with pytest.raises(UsageError):
        compile_model(booster, out=tmp_path / "x.orb", name=name, version="1")


def test_a_target_that_is_unknown_and_a_baseline_that_is_none(booster, tmp_path):
    with pytest.raises(NotFoundError):
        compile_model(booster, target="mips", out=tmp_path / "x.orb", **NAMED)
    with pytest.raises(BadBundleError, match="baseline does not decode"):
        compile_model(booster, out=tmp_path / "x.orb", baseline=b"no baseline", **NAMED)


PLAN = FeaturePlan(
    columns=(RawColumn(name="amt", kind="number"),),
    steps=(
        FeatureStep(op="log1p", inputs=("amt",), output="log_amt"),
        FeatureStep(op="log1p", inputs=("amt",), output="again"),
    ),
    outputs=("log_amt", "again"),
)


def test_a_model_directory_brings_everything(tmp_path):
    from outrider.runtime.features import compute

    amt = np.linspace(0, 50, 300)
    rows = compute(PLAN, {"amt": amt})
    target = (amt > 20).astype(int)
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows, label=target), 3)
    card = ModelCard(
        file="model.ubj",
        framework="xgboost",
        name="card-fraud",
        version="7",
        class_labels=("ok", "fraud"),
        feature_names=PLAN.outputs,
        run=RunInfo(id="run-1", recipe="fraud"),
    )
    folder = write_model_dir(
        tmp_path / "model",
        card,
        model=bytes(booster.save_raw("ubj")),
        calibration={"features": rows, "label": target},
        raw={"amt": amt},
        baseline=None,
        provenance=b'{"data": "x"}',
        features=PLAN,
    )
    report = compile_model(folder, out=tmp_path / "x.orb", goals=["accuracy>=0.9"])
    manifest = report.manifest
    assert (manifest.name, manifest.version, manifest.run_id) == ("card-fraud", "7", "run-1")
    assert manifest.features == PLAN
    assert manifest.baseline is not None
    assert set(manifest.golden.raw) == {"amt"}
    bundle = open_bundle(report.path)
    assert manifest.provenance is not None
    assert bundle.read(manifest.provenance) == b'{"data": "x"}'
    with load(report.path) as session:
        result = session.run({"amt": amt})
        assert np.allclose(result["score"], booster.predict(xgboost.DMatrix(rows)), atol=1e-6)
        assert set(result["label"].tolist()) == {"ok", "fraud"}
    other = xgboost.train({}, xgboost.DMatrix(rows[:, :1], label=target), 1)
    with pytest.raises(BadModelError, match="2 feature names for a model of 1"):
        compile_model(other, out=tmp_path / "y.orb", features=PLAN, **NAMED)
    swapped = xgboost.DMatrix(rows, label=target, feature_names=["again", "log_amt"])
    with pytest.raises(BadModelError, match="'log_amt' is 'again' there"):
        compile_model(xgboost.train({}, swapped, 1), out=tmp_path / "y.orb", features=PLAN, **NAMED)


def onnx_net(batch: Any = "n") -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = helper.make_tensor("w", TensorProto.FLOAT, [4, 3], rng.normal(size=12))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["probabilities"])]
    made = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [batch, 3])],
        initializer=[weights],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    return model


def test_onnx_through_its_runtime(tmp_path):
    net, rows = onnx_net(), np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
    onnx.save(net, tmp_path / "net.onnx")
    for target in ("host", "aarch64"):
        report = compile_model(tmp_path / "net.onnx", target=target, out=tmp_path / "x.orb", calibration=rows)
        assert report.manifest.name == "net"
        assert report.manifest.artifacts[0].package == "onnxruntime"
    with load(tmp_path / "x.orb") as session:
        logits = rows @ onnx.numpy_helper.to_array(net.graph.initializer[0])
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert np.allclose(session.predict(rows), expected, atol=1e-6)
    report = compile_model(net, out=tmp_path / "y.orb", **NAMED)
    assert report.manifest.evidence == "random"
    with pytest.raises(UnsupportedError, match="no package for riscv64"):
        compile_model(net, target=get_target("riscv64"), out=tmp_path / "z.orb", **NAMED)


def test_onnx_of_a_fixed_batch(tmp_path):
    net, rows = onnx_net(2), np.ones((5, 4), np.float32)
    report = compile_model(net, out=tmp_path / "x.orb", calibration=rows, **NAMED)
    assert report.manifest.golden.rows == 2  # calls, of two rows each
    assert [found.batch for found in report.candidates[0].measured] == [2]
    with pytest.raises(BadDataError, match="takes 2 at a time"):
        compile_model(net, out=tmp_path / "x.orb", calibration=rows[:1], **NAMED)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_of_the_table_refuses_or_builds_the_same_twice(name, booster):
    target = get_target("host")
    for model in (read_model(booster), read_model(onnx_net())):
        made = backend(name)
        order = Order(model, target)
        if made.refuses(order) is None:
            candidates = made.rule(order)
            assert len({candidate.id for candidate in candidates}) == len(candidates) >= 1
            first, second = (made.build(order, candidates[0]) for _ in range(2))
            assert (first.data, first.entry) == (second.data, second.entry)
