"""Training end to end, and the Runs that are kept of it."""

from __future__ import annotations

import json
import sqlite3
import threading

import numpy as np
import pytest

from outrider.compiler.modeldir import read_model_dir
from outrider.runtime.errors import BadDataError, BadModelError, BadRecipeError, NotFoundError, StorageError
from outrider.runtime.features import compute
from outrider.runtime.profile import decode_baseline
from outrider.trainer import train
from outrider.trainer.experiment import RunStore, code_version
from outrider.trainer.models.xgboost import XGBoost
from outrider.trainer.recipe import load_recipe

DAY = 86_400.0


def test_breast_cancer_learns_and_leaves_a_whole_model_directory(tmp_path):
    result = train("breast_cancer", tmp_path / "model", until="2019-01-25")
    test = result.run.metrics.test
    assert test.accuracy > 0.97 > test.majority_accuracy
    assert test.log_loss < 0.1 < test.majority_log_loss
    assert test.auc > 0.99

    model = read_model_dir(result.model_dir)
    assert model.card.name == "breast-cancer"
    assert model.card.framework == "xgboost"
    assert model.card.class_labels == ("benign", "malignant")
    assert model.card.run.id == result.run.id
    assert model.card.run.data_digest == result.run.data.digest
    x = model.calibration["features"]
    assert x.dtype == np.float32
    assert x.shape == (1000, len(model.card.feature_names))
    assert compute(model.features, model.raw).tobytes() == x.tobytes()
    scores = XGBoost().load(model.model.read_bytes()).scores(x)
    assert np.mean((scores > 0.5) == model.calibration["label"]) > 0.98
    baseline = decode_baseline(model.baseline)
    assert baseline.names == model.card.feature_names
    assert sum(baseline.scores) == result.run.data.parts["valid"] + result.run.data.parts["test"]
    provenance = json.loads(model.provenance)
    assert provenance["run_id"] == result.run.id
    assert provenance["data_digest"] == result.run.data.digest
    assert provenance["source"] == load_recipe("breast_cancer").recipe.source


def test_a_shop_is_learned_and_the_same_rows_give_the_same_model(shop, tmp_path):
    one, two = (train(shop.recipe, tmp_path / name, runs=tmp_path / "runs.db") for name in "ab")
    assert one.run.metrics.test.accuracy > 0.95
    assert one.run.metrics == two.run.metrics
    assert one.run.data == two.run.data
    for name in ("model.ubj", "features.json", "calibration.npz", "raw.npz", "baseline.msgpack"):
        assert (one.model_dir / name).read_bytes() == (two.model_dir / name).read_bytes()
    assert [run.id for run in RunStore(tmp_path / "runs.db").list("shop")] == [two.run.id, one.run.id]


def test_nothing_after_the_cutoff_is_used(shop, shop_rows, tmp_path):
    early = train(shop.recipe, tmp_path / "a", until="2019-02-10T12:00:00Z")
    assert early.run.data.last < early.run.data.until == 1_549_800_000.0
    shop.write(shop_rows(0, 60).take(shop_rows(0, 60)["at"] < early.run.data.until))
    assert train(shop.recipe, tmp_path / "b").run.data.digest == early.run.data.digest
    with pytest.raises(BadDataError, match="no rows are left"):
        train(shop.recipe, tmp_path / "c", until=0.0)


def test_learned_sets_see_the_history_alone(shop, shop_rows, tmp_path):
    """A card that is bad in the training rows only must not be known, or the model would read its own labels."""
    rows = shop_rows(0, 60)
    card, fraud = rows["card"].copy(), rows["fraud"].copy()
    late = np.flatnonzero(rows["at"] > rows["at"][-1] - 25 * DAY)[:40]
    card[late], fraud[late] = "late", "True"
    shop.write(rows.replace(card=card, fraud=fraud))
    plan = read_model_dir(train(shop.recipe, tmp_path / "m").model_dir).features
    known = next(step for step in plan.steps if step.output == "bad_card").params["values"]
    assert "late" not in known
    assert {value[-1] for value in known} == {"7"}


def test_three_classes(shop, shop_rows, tmp_path):
    rows = shop_rows(0, 60)
    third = np.where(rows["amount"] < 100, "small", rows["fraud"]).astype(object)
    shop.write(rows.replace(fraud=third))
    shop.edit('values = ["False", "True"]', 'values = ["False", "True", "small"]')
    recipe = shop.edit('classes = ["fine", "fraud"]', "classes = [0, 1, 2]")
    result = train(recipe, tmp_path / "m")
    assert result.run.metrics.test.accuracy > 0.85
    assert result.run.metrics.test.auc is None
    assert read_model_dir(result.model_dir).card.class_labels == (0, 1, 2)


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ('values = ["False", "True"]', 'values = ["no", "yes"]', BadDataError, "'fraud' holds '(True|False)'.*no, yes"),
        ('path = "rows.csv"', 'path = "gone.csv"', NotFoundError, "no file"),
        ("eta = 0.4", "eta = -1", BadRecipeError, "XGBoost refuses"),
        ('kind = "number"', 'kind = "string"', BadRecipeError, "reads 'amount', a string, but takes a number"),
        ('name = "card"', 'name = "wallet"', BadRecipeError, "'card', which is no column"),
    ],
)
def test_what_goes_wrong_is_raised_and_leaves_no_model(shop, tmp_path, old, new, error, message):
    recipe = shop.edit(old, new)
    with pytest.raises(error, match=message):
        train(recipe, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_class_without_rows_is_named(shop, shop_rows, tmp_path):
    rows = shop_rows(0, 60)
    shop.write(rows.replace(fraud=np.full(len(rows), "False", dtype=object)))
    with pytest.raises(BadDataError, match="no training row is labelled 'True'"):
        train(shop.recipe, tmp_path / "m")
    (run,) = RunStore(tmp_path / "runs.db").list()
    assert run.state == "failed"
    assert "labelled 'True'" in run.error


@pytest.mark.parametrize("stage", ["read", "train", "baseline"])
def test_an_interrupted_run_is_marked_and_the_old_model_stays(shop, tmp_path, stage):
    train(shop.recipe, tmp_path / "m")
    before = (tmp_path / "m" / "model.toml").read_bytes()

    def interrupt(at, detail):
        if at == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(shop.recipe, tmp_path / "m", progress=interrupt)
    newest, oldest = RunStore(tmp_path / "runs.db").list()
    assert (newest.state, oldest.state) == ("interrupted", "done")
    assert newest.finished is not None
    assert newest.model_dir is None
    assert (tmp_path / "m" / "model.toml").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "runs.db", "shop"]


def test_a_run_says_what_it_was(shop, tmp_path):
    run = train(shop.recipe, tmp_path / "m").run
    again = RunStore(tmp_path / "runs.db").get(run.id)
    assert again == run
    assert run.state == "done"
    assert run.seconds > 0
    assert run.parameters["model.kind"] == "xgboost"
    assert run.parameters["split.half_life"] == "5d"
    assert sum(run.data.parts.values()) == run.data.rows
    assert run.code_version == code_version()
    assert run.code_version.startswith("0.")


def test_run_stores(tmp_path):
    with pytest.raises(NotFoundError, match="no run nope"):
        RunStore(tmp_path / "runs.db").get("nope")
    (tmp_path / "file.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(StorageError, match=r"file\.db"):
        RunStore(tmp_path / "file.db").list()
    with pytest.raises(StorageError):
        RunStore(tmp_path / "file.db" / "runs.db").list()


def test_runs_are_recorded_from_several_threads(shop, tmp_path):
    recipe, errors = shop.recipe, []

    def work(name):
        try:
            train(recipe, tmp_path / name, runs=tmp_path / "runs.db")
        except Exception as e:  # shown by the assertion below
            errors.append(e)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    with sqlite3.connect(tmp_path / "runs.db") as connection:
        assert connection.execute("SELECT count(*) FROM runs WHERE state = 'done'").fetchone() == (2,)
    connection.close()


def test_xgboost_refuses_a_file_that_is_no_model():
    with pytest.raises(BadModelError, match="not an XGBoost model"):
        XGBoost().load(b"nonsense" * 20)
