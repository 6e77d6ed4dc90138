"""A small shop: a recipe, and rows of two worlds that it can be trained on in a moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from outrider.compiler import compile_model
from outrider.runtime.features import RawColumn
from outrider.trainer.data.table import Table, write_csv
from outrider.trainer.training import train

RECIPE = """
[recipe]
name = "shop"

[source]
kind = "csv"
path = "rows.csv"

[split]
time = "at"
history = 0.3
recent = "10d"
block = "6h"
valid = 0.25
test = 0.25
half_life = "5d"

[[columns]]
name = "amount"
kind = "number"

[[columns]]
name = "country"
kind = "string"

[[columns]]
name = "card"
kind = "string"

[[features]]
name = "log_amount"
step = "log1p"
inputs = ["amount"]

[[features]]
name = "country_code"
step = "category"
inputs = ["country"]

[[features]]
name = "bad_card"
step = "in_set"
inputs = ["card"]

[label]
column = "fraud"
values = ["False", "True"]
classes = ["fine", "fraud"]

[model]
kind = "xgboost"
rounds = 30
early_stopping = 5
params = { max_depth = 3, eta = 0.4 }

[calibration]
rows = 200

[gate]
min_gain = 0.01
min_rows = 100
"""
START = 1_546_300_800.0  # 2019-01-01
DAY = 86_400.0


def rows(first_day: float, days: float, *, a_day: int = 60, seed: int = 3, changed: bool = False) -> Table:
    """Rows of the shop. Fraud is what is dear, and what bad cards buy; `changed`: what is cheap and from Narnia."""
    random = np.random.default_rng(seed)
    n = int(days * a_day)
    amount = np.round(random.uniform(1, 1000, n), 2)
    country = random.choice(np.array(["US", "NA", "FR", "Narnia"], dtype=object), n)
    card = np.array([f"{number:03d}" for number in random.integers(0, 300, n)], dtype=object)
    bad = np.char.endswith(card.astype(str), "7")
    fraud = ((amount < 500) & (country == "Narnia")) | (amount > 990) if changed else (amount > 900) | bad
    return Table(
        {
            "amount": amount,
            "country": country,
            "card": card,
            "at": START + DAY * (first_day + np.sort(random.uniform(0, days, n))),
            "fraud": np.where(fraud ^ (random.random(n) < 0.01), "True", "False").astype(object),
        }
    )


@dataclass(frozen=True)
class Shop:
    """A folder with a recipe and its rows."""

    recipe: Path

    def write(self, table: Table) -> Path:
        """Exchange the rows, and return the recipe."""
        write_csv(table, self.recipe.with_name("rows.csv"), times=["at"])
        return self.recipe

    def edit(self, old: str, new: str) -> Path:
        """Exchange a part of the recipe, and return it."""
        text = self.recipe.read_text()
        assert old in text
        self.recipe.write_text(text.replace(old, new))
        return self.recipe


@pytest.fixture
def shop_rows() -> Callable[..., Table]:
    return rows


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "recipe.toml").write_text(RECIPE)
    made = Shop(folder / "recipe.toml")
    made.write(rows(0, 60))
    return made


@dataclass(frozen=True)
class Champion:
    """A trained and compiled model of the unchanged shop."""

    model_dir: Path
    bundle: Path


@pytest.fixture(scope="session")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Champion:
    folder = tmp_path_factory.mktemp("champion")
    (folder / "recipe.toml").write_text(RECIPE)
    write_csv(rows(0, 60), folder / "rows.csv", times=["at"])
    result = train(folder / "recipe.toml", folder / "model")
    compile_model(result.model_dir, target="host", out=folder / "shop.orb", name="shop", version="1")
    return Champion(model_dir=result.model_dir, bundle=folder / "shop.orb")


@pytest.fixture
def shop_columns() -> tuple[RawColumn, ...]:
    kinds = {"amount": "number", "country": "string", "card": "string"}
    return tuple(RawColumn(name=name, kind=kind) for name, kind in kinds.items())
