"""`outrider compile`: its exit codes and what it prints."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost
from sklearn import ensemble

from outrider.runtime.bundle import open_bundle
from outrider.runtime.cli import main
from outrider.targets import target_names


@pytest.fixture(scope="module")
def model(table: Any, tmp_path_factory: Any) -> Path:
    rows, target = table
    folder = tmp_path_factory.mktemp("cli")
    booster = xgboost.train({"objective": "binary:logistic"}, xgboost.DMatrix(rows, label=target > 0), 2)
    booster.save_model(folder / "fraud.ubj")
    np.savez(folder / "rows.npz", features=rows)
    linear = xgboost.train({"booster": "gblinear"}, xgboost.DMatrix(np.nan_to_num(rows), label=target), 1)
    linear.save_model(folder / "linear.ubj")
    (folder / "cut.ubj").write_bytes((folder / "fraud.ubj").read_bytes()[:-40])
    forest = ensemble.RandomForestClassifier(2).fit(rows, target)
    (folder / "forest.pkl").write_bytes(pickle.dumps(forest))
    return folder


def test_success(model, tmp_path, capsys):
    out = tmp_path / "fraud.orb"
    arguments = ["--target", "aarch64", "-o", str(out), "--calibration", str(model / "rows.npz"), "--version", "2"]
    assert main(["compile", str(model / "fraud.ubj"), *arguments, "--goal", "size<=1MB"]) == 0
    printed = capsys.readouterr().out
    assert "fraud 2 for aarch64" in printed
    assert "native-k2-lanes8" in printed
    assert str(out) in printed
    assert out.is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["cut.ubj"], 1, "not a whole XGBoost model"),
        (["none.ubj"], 1, "no model file"),
        (["forest.pkl"], 1, "--trust-pickle"),
        (["fraud.ubj", "--target", "mips"], 1, "no target"),
        (["fraud.ubj", "--goal", "speed<=1"], 2, "unknown metric"),
        (["fraud.ubj", "--nonsense"], 2, "--nonsense"),
        ([], 2, "MODEL"),
        (["fraud.ubj", "--name", "a b"], 2, "cannot be the name"),
        (["linear.ubj"], 4, "gblinear"),
        (["fraud.ubj", "--backend", "magic"], 2, "no backend 'magic'"),
        (["fraud.ubj", "--backend", "ort"], 4, "not an ONNX graph"),
        (["fraud.ubj", "--precision", "int3"], 2, "no precision 'int3'"),
        (["fraud.ubj", "--threads", "0"], 2, "no whole number"),
        (["fraud.ubj", "--budget", "-1"], 2, "no time"),
        (["fraud.ubj", "--budget", "soon"], 2, "no number of seconds"),
        (["fraud.ubj", "--shape", "x=1,-3"], 2, "cannot be parsed"),
        (["fraud.ubj", "--shape", "x=1", "--shape", "x=2"], 2, "two shapes"),
        (["fraud.ubj", "--label", "a"], 1, "1 class labels for a model of 2"),
        (["fraud.ubj", "--eval", "nothing"], 2, "names no function"),
        (["fraud.ubj", "--eval", "surely.not:there"], 2, "no module 'surely.not'"),
        (["fraud.ubj", "--eval", "json:nothing"], 2, "no function 'nothing'"),
    ],
)
def test_exit_codes(model, tmp_path, capsys, arguments, code, message):
    given = [str(model / arguments[0]), *arguments[1:]] if arguments else []
    assert main(["compile", *given, "-o", str(tmp_path / "x.orb")]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_goals_that_nothing_meets_keep_the_closest(model, tmp_path, capsys):
    out, path = tmp_path / "x.orb", str(model / "fraud.ubj")
    goals = ["--goal", "size<=9B", "--goal", "size<=1GB"]
    assert main(["compile", path, "-o", str(out), "--target", "armv7", *goals]) == 3
    shown = capsys.readouterr()
    assert "but comes closest" in shown.out
    assert "goal size<=9B: NOT MET" in shown.out
    assert "goal size<=1GB: met" in shown.out
    assert "x.unmet.orb" in shown.err
    assert [found.name for found in tmp_path.iterdir()] == ["x.unmet.orb"]
    manifest = open_bundle(tmp_path / "x.unmet.orb").manifest
    assert [goal.met for goal in manifest.goals] == [False, True]
    closest = next(record for record in manifest.candidates if record.rank == 1)
    assert closest.outcome == "rejected"
    assert closest.reason.startswith("misses size<=9B, but comes closest")
    assert main(["explain", str(tmp_path / "x.unmet.orb")]) == 0
    assert "this bundle does not meet its goals" in capsys.readouterr().out


def test_an_evaluation_from_the_current_folder(model, tmp_path, capsys, monkeypatch):
    (tmp_path / "my_checks.py").write_text(
        "def spread(predict, inputs, labels):\n    return {'spread': float(predict(inputs)['score'].std())}\n"
        "def fails(predict, inputs, labels):\n    return 1 / 0\n"
    )
    (tmp_path / "my_broken.py").write_text("import surely_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    command = ["compile", str(model / "fraud.ubj"), "-o", "x.orb", "--target", "aarch64"]
    assert main([*command, "--goal", "spread>=0", "--eval", "my_checks:spread"]) == 0
    assert "goal spread>=0: met" in capsys.readouterr().out
    assert main([*command, "--goal", "loss<=1", "--eval", "my_checks:fails"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert main([*command, "--goal", "loss<=1", "--eval", "my_broken:f"]) == 1
    assert "surely_not_there" in capsys.readouterr().err


def test_labels_by_name(model, tmp_path):
    out = tmp_path / "x.orb"
    labels = ["--label", "ok", "--label", "fraud"]
    assert main(["compile", str(model / "fraud.ubj"), "-o", str(out), "--target", "aarch64", *labels]) == 0
    assert open_bundle(out).manifest.signature.class_labels == ("ok", "fraud")


def test_ctrl_c_writes_the_best_so_far(model, tmp_path, monkeypatch, capsys):
    from outrider.compiler import pipeline

    search = pipeline.search
    monkeypatch.setattr(pipeline, "search", lambda *given: replace(search(*given), interrupted=True))
    out = tmp_path / "x.orb"
    assert main(["compile", str(model / "fraud.ubj"), "-o", str(out), "--target", "aarch64"]) == 130
    shown = capsys.readouterr()
    assert "native-k2-lanes8" in shown.out
    assert "interrupted: " in shown.err
    assert open_bundle(out).manifest.name == "fraud"


def test_a_trusted_pickle(model, tmp_path):
    path = str(model / "forest.pkl")
    assert main(["compile", path, "-o", str(tmp_path / "x.orb"), "--target", "riscv64", "--trust-pickle"]) == 0


def test_help(capsys):
    assert main(["compile", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--target" in printed
    assert all(name in printed for name in target_names())


def test_ctrl_c_leaves_nothing(model, tmp_path, monkeypatch):
    from outrider.compiler import pipeline

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "make_golden", interrupt)
    assert main(["compile", str(model / "fraud.ubj"), "-o", str(tmp_path / "x.orb"), "--target", "aarch64"]) == 130
    assert not list(tmp_path.iterdir())
