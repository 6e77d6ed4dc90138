"""Artifacts for other targets run under QEMU and give the same bits as those for this machine."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost
from sklearn import ensemble

from outrider.compiler import compile_model
from outrider.compiler.backends import Candidate, backend
from outrider.compiler.frontends import read_model
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.rows import rows_from_thresholds
from outrider.runtime.bundle import open_bundle
from outrider.runtime.engines import open_engine
from outrider.targets import board_of, boards, get_target
from outrider.targets.emulate import run_native

pytestmark = pytest.mark.system

FOREIGN = [name for name, board in boards().items() if board.arch != get_target("host").arch]


@pytest.fixture
def emulated(require_tool: Any) -> Any:
    def find(name: str) -> Any:
        target = get_target(name)
        require_tool(f"{board_of(target).emulator.program}-static")
        return target

    return find


def models(table: Any) -> dict[str, Any]:
    rows, target = table
    rng = np.random.default_rng(0)
    coded = rows.copy()
    coded[:, 2] = rng.integers(0, 40, len(rows))
    light = {"objective": "multiclass", "num_class": 3, "verbose": -1, "min_data_per_group": 1, "cat_smooth": 1}
    return {
        "float32": xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows, label=target > 0), 10),
        "float64": lightgbm.train(light, lightgbm.Dataset(coded, label=target, categorical_feature=[2]), 5),
        "average": ensemble.RandomForestClassifier(5, random_state=0).fit(rows, target),
        "isolation": ensemble.IsolationForest(n_estimators=5, random_state=0).fit(rows),
    }


@pytest.mark.parametrize("name", FOREIGN)
def test_the_same_bits_everywhere(table, emulated, name):
    target, host = emulated(name), get_target("host")
    for source in models(table).values():
        model = read_model(source)
        assert isinstance(model.payload, Forest)
        rows = rows_from_thresholds(model.payload, seed=3, nan=model.accepts_nan, inf=model.accepts_inf, max_rows=301)
        here, there = (
            backend("native").build(model, Candidate("native", options={"lanes": "8"}), where)
            for where in (host, target)
        )
        with closing(open_engine(here.entry, here.data, model.signature)) as engine:
            expected = engine.run({"features": rows})
        found = run_native(there.entry, there.data, {"features": rows}, target, model.signature)
        for output, values in expected.items():
            assert found[output].tobytes() == values.tobytes()


@pytest.mark.parametrize("name", FOREIGN)
def test_a_compiled_bundle_gives_its_golden_outputs(table, emulated, tmp_path, name):
    from outrider.runtime.bundle import decode_npy

    rows, target_values = table
    target = emulated(name)
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows, label=target_values > 0), 5)
    report = compile_model(booster, target=name, out=tmp_path / "x.orb", calibration=rows, name="fraud", version="1")
    chosen = next(record for record in report.candidates if record.rank == 1)
    assert "not measured" in chosen.reason
    assert chosen.measured == ()
    bundle = open_bundle(report.path)
    entry, golden = bundle.manifest.artifacts[0], bundle.manifest.golden
    inputs = {key: decode_npy(bundle.read(path)) for key, path in golden.inputs.items()}
    found = run_native(entry, bundle.read(entry.path), inputs, target, bundle.manifest.signature)
    wanted = decode_npy(bundle.read(golden.outputs["score"]))
    assert np.allclose(found["score"], wanted, rtol=golden.rtol, atol=golden.atol)
