"""`outrider compile`: its exit codes and what it prints."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost
from sklearn import ensemble

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
        (["fraud.ubj", "--target", "armv7", "--goal", "size<=9B"], 3, "size<=9B"),
        (["linear.ubj"], 4, "gblinear"),
    ],
)
def test_exit_codes(model, tmp_path, capsys, arguments, code, message):
    given = [str(model / arguments[0]), *arguments[1:]] if arguments else []
    assert main(["compile", *given, "-o", str(tmp_path / "x.orb")]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


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
