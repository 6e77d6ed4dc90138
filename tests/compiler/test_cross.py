"""Artifacts for other targets give the same bits as those for this machine: under QEMU, and by a WebAssembly engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import msgspec
import numpy as np
import pytest
import xgboost
from sklearn import ensemble

from outrider.compiler import compile_model
from outrider.compiler.backends import Built, Candidate, Order, backend
from outrider.compiler.frontends import read_model
from outrider.compiler.model import Model
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.narrow import narrow
from outrider.compiler.trees.rows import double_rows_from_thresholds, rows_from_thresholds
from outrider.runtime import load
from outrider.runtime.bundle import open_bundle
from outrider.runtime.engines import open_engine
from outrider.runtime.errors import ToolchainError
from outrider.runtime.golden import check_golden
from outrider.runtime.target import Libc, Target
from outrider.targets import board_of, boards, emulate, get_target
from outrider.targets.emulate import run_native

pytestmark = pytest.mark.system

FOREIGN = [name for name, board in boards().items() if board.arch != get_target("host").arch]
VECTORS = {"aarch64": "leafwise-neon", "armv7": "leafwise-neon32", "riscv64": "leafwise-rvv", "x86-64": "leafwise-avx2"}
EMULATED = [name for name in FOREIGN if boards()[name].emulator is not None]
Array = np.ndarray


@pytest.fixture
def emulated(require_tool: Any) -> Any:
    def find(name: str) -> Target:
        target = get_target(name)
        emulator = board_of(target).emulator
        if emulator is not None:
            require_tool(f"{emulator.program}-static")
        return target

    return find


@pytest.fixture
def with_musl(require_tool: Any) -> Target:
    """This machine, with its programs linked to musl."""
    host = get_target("host")
    loader = {"x86_64": "x86_64", "aarch64": "aarch64", "armv7": "armhf", "riscv64": "riscv64"}[host.arch]
    if not Path(f"/lib/ld-musl-{loader}.so.1").exists():
        require_tool("musl's loader")
    return msgspec.structs.replace(host, name="alpine", libc=Libc(kind="musl", version=(1, 2)))


def models(table: Any) -> Iterator[Model]:
    """Sums of both precisions, averages, categories, and three transforms; the last with subnormal leaves."""
    rows, target = table
    rng = np.random.default_rng(0)
    coded = rows.copy()
    coded[:, 2] = rng.integers(0, 40, len(rows))
    light = {"objective": "multiclass", "num_class": 3, "verbose": -1, "min_data_per_group": 1, "cat_smooth": 1}
    boosted = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows, label=target > 0), 10)
    for source in (
        boosted,
        lightgbm.train(light, lightgbm.Dataset(coded, label=target, categorical_feature=[2]), 5),
        ensemble.RandomForestClassifier(5, random_state=0).fit(rows, target),
        ensemble.IsolationForest(n_estimators=5, random_state=0).fit(rows),
    ):
        yield read_model(source)
    yield subnormal(read_model(boosted))


def subnormal(model: Model) -> Model:
    """The model with leaves of about 1e-40, which are added up as they are."""
    forest = model.payload
    assert isinstance(forest, Forest)
    trees = tuple(replace(tree, values=tree.values * 1e-40) for tree in forest.trees)
    return replace(model, payload=replace(forest, trees=trees, base=np.zeros(1), transform="identity"))


def build(model: Model, target: Target) -> Built:
    return backend("native").build(Order(model, target), Candidate("native", options={"lanes": "8"}))


def here(model: Model, built: Built, rows: Array) -> dict[str, Array]:
    with closing(open_engine(built.entry, built.data, model.signature)) as engine:
        return engine.run({"features": rows})


def adversarial(model: Model) -> Array:
    assert isinstance(model.payload, Forest)
    return rows_from_thresholds(model.payload, seed=3, nan=model.accepts_nan, inf=model.accepts_inf, max_rows=301)


@pytest.mark.parametrize("name", FOREIGN)
def test_the_same_bits_everywhere(table, emulated, name):
    target = emulated(name)
    for model in models(table):
        rows = adversarial(model)
        expected = here(model, build(model, get_target("host")), rows)
        built = build(model, target)
        if built.entry.format == "wasm":
            found = here(model, built, rows)
        else:
            found = run_native(built.entry, built.data, {"features": rows}, target, model.signature)
        for output, values in expected.items():
            assert found[output].tobytes() == values.tobytes()


@pytest.mark.parametrize("name", FOREIGN)
def test_doubles_are_decided_alike_everywhere(table, emulated, name):
    """Rounded up or down, ranked, by category; and rounded to the nearest."""
    target = emulated(name)
    for model in double_models(table):
        assert isinstance(model.payload, Forest)
        rows = double_rows_from_thresholds(model.payload, seed=4, nan=True, inf=model.accepts_inf, max_rows=301)
        expected = here(model, build(model, get_target("host")), rows)
        built = build(model, target)
        if built.entry.format == "wasm":
            found = here(model, built, rows)
        else:
            found = run_native(built.entry, built.data, {"features": rows}, target, model.signature)
        for output, values in model.reference({"features": rows}).items():
            assert found[output].tobytes() == expected[output].tobytes()
            assert np.allclose(values, expected[output], rtol=1e-5, atol=1e-6)


def double_models(table: Any) -> Iterator[Model]:
    """LightGBM with times of one minute in seconds, which float32 does not tell apart, and a category; XGBoost."""
    rows, target = table[0].astype(np.float64), table[1]
    rng = np.random.default_rng(0)
    rows[:, 1], rows[:, 2] = 1.7e9 + 60 * rng.random(len(rows)), rng.integers(0, 40, len(rows))
    light = {"verbose": -1, "min_data_per_group": 1, "cat_smooth": 1, "num_threads": 1, "zero_as_missing": True}
    data = lightgbm.Dataset(rows, label=target + 2 * (rows[:, 1] > 1.7e9 + 30), categorical_feature=[2])
    model = read_model(lightgbm.train(light, data, 5))
    assert isinstance(model.payload, Forest)
    narrowing = narrow(model.payload, model.decides_in)
    assert (narrowing.ranked, narrowing.categories) == ((1,), (2,))
    yield model
    yield read_model(xgboost.XGBRegressor(n_estimators=3).fit(rows, target))


def test_the_same_bits_beside_musl(table, with_musl):
    for model in models(table):
        rows, built = adversarial(model), build(model, get_target("host"))
        found = run_native(built.entry, built.data, {"features": rows}, with_musl, model.signature)
        for output, values in here(model, built, rows).items():
            assert found[output].tobytes() == values.tobytes()


def test_subnormal_sums_are_kept(table):
    """What the tests above compare, with no host that flushes."""
    *_, model = models(table)
    rows = adversarial(model)
    (values,) = here(model, build(model, get_target("host")), rows).values()
    assert np.count_nonzero(values) > len(values) / 2
    assert np.abs(values).max() < np.finfo(np.float32).smallest_normal


@pytest.mark.parametrize("name", EMULATED)
def test_a_compiled_bundle_gives_its_golden_outputs(table, emulated, tmp_path, name):
    from outrider.runtime.bundle import decode_npy

    rows, target_values = table
    target, emulator = emulated(name), boards()[name].emulator
    assert emulator is not None
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows, label=target_values > 0), 5)
    report = compile_model(booster, target=name, out=tmp_path / "x.orb", calibration=rows, name="fraud", version="1")
    shipped = [record for record in report.candidates if record.rank is not None]
    assert shipped[0].options["batch"] == VECTORS[name]
    assert all(record.measured == () for record in shipped)
    bundle = open_bundle(report.path)
    golden = bundle.manifest.golden
    inputs = {key: decode_npy(bundle.read(path)) for key, path in golden.inputs.items()}
    wanted = decode_npy(bundle.read(golden.outputs["score"]))
    for record, entry in zip(shipped, bundle.manifest.artifacts, strict=True):
        cpu = emulator.cpu_with(entry.needs.features)
        assert f"; verified under {emulator.program} -cpu {cpu}, not measured" in record.reason
        found = run_native(entry, bundle.read(entry.path), inputs, target, bundle.manifest.signature)
        assert np.allclose(found["score"], wanted, rtol=golden.rtol, atol=golden.atol)


def test_without_an_emulator_the_same_is_shipped_on_the_word_of_a_twin(table, emulated, tmp_path, monkeypatch):
    rows, target_values = table
    emulated("armv7")
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows, label=target_values > 0), 5)
    options: dict[str, Any] = {"target": "armv7", "calibration": rows, "name": "fraud", "version": "1"}
    bundles = []
    for which in ("here", "missing", "broken"):
        if which == "missing":
            monkeypatch.setattr(emulate, "find_emulator", lambda emulator: None)
        if which == "broken":
            monkeypatch.undo()
            monkeypatch.setattr(emulate, "_run", broken)
        report = compile_model(booster, out=tmp_path / f"{which}.orb", **options)
        how = "under" if which == "here" else "on the same sources built for this machine"
        assert all(f"; verified {how}" in record.reason for record in report.candidates if record.rank is not None)
        bundles.append(open_bundle(report.path))
    first, *others = ([bundle.read(entry.path) for entry in bundle.manifest.artifacts] for bundle in bundles)
    assert len(first) == 2
    assert others == [first, first]


def broken(*_: Any) -> bytes:
    raise ToolchainError("the emulator failed")


def test_a_bundle_for_wasm_is_verified_by_its_engine_and_runs_here(table, tmp_path):
    rows, target_values = table
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows, label=target_values > 0), 5)
    options: dict[str, Any] = {"calibration": rows, "name": "fraud", "version": "1"}
    report = compile_model(booster, target="wasm32-wasi", out=tmp_path / "x.orb", **options)
    first, second = report.candidates[:2]
    assert first.reason == "the rule for wasm32 with simd128; verified here, by wasmtime, not measured"
    assert second.reason == "the rule for wasm32; verified here, by wasmtime, not measured"
    assert "verified here, by wasmtime" in report.table()
    assert [entry.needs.features for entry in report.manifest.artifacts] == [("lime1", "simd128"), ("lime1",)]
    with load(report.path) as session:
        assert session.artifact.format == "wasm"
        assert session.artifact.needs.arch is None
        assert session.artifact.candidate == first.id
        assert check_golden(session, repeats=1).passed
    again = compile_model(booster, target="wasm32-wasi", out=tmp_path / "y.orb", replay_from=report.path, **options)
    assert again.sha256 == report.sha256


def test_without_the_engine_wasm_is_verified_by_a_twin(table, tmp_path, monkeypatch):
    rows, target_values = table
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows, label=target_values > 0), 5)
    monkeypatch.setattr("outrider.compiler.making.available", lambda kind: kind != "wasm")
    report = compile_model(booster, target="wasm32-wasi", out=tmp_path / "x.orb", name="fraud", version="1")
    assert [record.reason for record in report.candidates[:2]] == [
        f"the rule for wasm32{more}; verified on the same sources built for this machine, not measured"
        for more in (" with simd128", "")
    ]
