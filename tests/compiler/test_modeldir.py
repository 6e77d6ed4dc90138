"""The model directory: a round trip of everything, and what is wrong with it said clearly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.compiler.modeldir import ModelCard, RunInfo, decode_card, encode_card, read_model_dir, write_model_dir
from outrider.runtime.errors import BadModelError, NotFoundError
from outrider.runtime.features.plan import FeaturePlan, FeatureStep, RawColumn

CARD = ModelCard(file="model.ubj", framework="xgboost", name="fraud", version="3", class_labels=("ok", "fraud"))
PLAN = FeaturePlan(
    columns=(RawColumn(name="amt", kind="number"), RawColumn(name="shop", kind="string")),
    steps=(FeatureStep(op="log", inputs=("amt",), output="log_amt"),),
    outputs=("log_amt",),
)


def write(folder, **changes):
    arguments = {
        "model": b"bytes",
        "calibration": {"features": np.zeros((3, 1), np.float32)},
        "raw": {"amt": np.arange(3.0), "shop": np.array(["a", "b", "ü"])},
        "baseline": b"b",
        "provenance": b"{}",
        "features": PLAN,
    }
    return write_model_dir(folder, CARD, **{**arguments, **changes})


def test_round_trip(tmp_path):
    folder = write(tmp_path / "model")
    read = read_model_dir(folder)
    assert read.card == CARD
    assert read.model.read_bytes() == b"bytes"
    assert read.features == PLAN
    assert read.calibration["features"].dtype == np.float32
    assert read.raw["shop"].tolist() == ["a", "b", "ü"]
    assert (read.baseline, read.provenance) == (b"b", b"{}")


def test_a_newer_model_replaces_the_older_one_whole(tmp_path):
    write(tmp_path / "model")
    write(tmp_path / "model", baseline=None, raw={}, features=None)
    read = read_model_dir(tmp_path / "model")
    assert (read.baseline, read.raw, read.features) == (None, {}, None)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_same_parts_give_the_same_bytes(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@settings(max_examples=60)
@given(st.text(), st.lists(st.text() | st.integers(-(2**63), 2**63 - 1), max_size=3), st.floats(allow_nan=False))
def test_any_card_survives_toml(text, labels, finished):
    if finished in (float("inf"), float("-inf")):
        finished = 0.0
    card = ModelCard(
        file="m.ubj",
        framework=text,
        name="n",
        version="1",
        class_labels=tuple(labels),
        feature_names=(text, "a"),
        run=RunInfo(id=text, recipe=text, finished=finished),
    )
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert decode_card(encode_card(card)) == card


@pytest.mark.parametrize(
    "text",
    ["", "[model", '[model]\nfile = "m"\n', encode_card(CARD) + "colour = 1\n", encode_card(CARD) + "[extra]\na = 1\n"],
)
def test_cards_that_cannot_be_used(text):
    with pytest.raises(BadModelError):
        decode_card(text)


@pytest.mark.parametrize("name", ["model.toml", "../up.ubj", "", "a/b", "calibration.npz"])
def test_a_model_file_stays_inside_and_beside_the_others(tmp_path, name):
    card = ModelCard(file=name, framework="x", name="n", version="1")
    with pytest.raises(BadModelError):
        write_model_dir(tmp_path / "d", card, model=b"", calibration={}, raw={}, baseline=None, provenance=None)
    assert not (tmp_path / "d").exists()


def test_folders_that_are_no_model_directory(tmp_path):
    with pytest.raises(NotFoundError):
        read_model_dir(tmp_path)
    folder = write(tmp_path / "model")
    (folder / "model.ubj").unlink()
    with pytest.raises(BadModelError, match=r"model\.ubj"):
        read_model_dir(folder)
    folder = write(tmp_path / "model", raw={"amt": np.zeros(2)})
    with pytest.raises(BadModelError, match="different lengths"):
        read_model_dir(folder)
    folder = write(tmp_path / "model")
    for name in ("calibration.npz", "features.json"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(b"PK\x03\x04 broken")
        with pytest.raises(BadModelError, match=name):
            read_model_dir(folder)
        (folder / name).write_bytes(kept)
