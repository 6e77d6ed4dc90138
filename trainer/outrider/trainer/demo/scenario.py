"""The demo's data: rows before the fleet goes live, following rows as they were, and rows of a changed world.

The rows a fleet has seen, with the labels that came later, land in one CSV file; the demo's recipe reads that file,
so a retrain sees what a production landing zone would hold by then, and nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import UnavailableError
from outrider.trainer.data.shift import SHIFTS
from outrider.trainer.data.table import Table, concatenate, write_csv
from outrider.trainer.progress import Progress
from outrider.trainer.recipe import Recipe, load_recipe
from outrider.trainer.tables import make_source

CARDS, CANCER = "card_fraud", "breast_cancer"
HISTORY_SHARE, STEADY_SHARE = 0.62, 0.14
LANDING, RECIPE = "landing.csv", "recipe.toml"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Rows in order of time, and the recipe that reads their columns. `note` says where they are from."""

    recipe: Recipe
    bundled: str
    note: str
    history: Table
    steady: Table
    shifted: Table

    @property
    def model(self) -> str:
        """The model's name."""
        return self.recipe.recipe.name

    @property
    def raw_columns(self) -> list[str]:
        """What a device is given."""
        return [column.name for column in self.recipe.columns]

    def classes(self, rows: Table) -> NDArray[Any]:
        """The true class of each row, as the model names classes."""
        label = self.recipe.label
        names = {value: str(name) for value, name in zip(label.values, label.class_labels(), strict=True)}
        return np.array([names[value] for value in rows[label.column].tolist()], dtype=object)

    def write_recipe(self, folder: Path) -> Path:
        """Write the demo's recipe: the bundled one, reading from the landing file."""
        path = folder / RECIPE
        path.write_text(f'extends = "{self.bundled}"\n\n[source]\nkind = "csv"\npath = "{LANDING}"\n', encoding="utf-8")
        return path

    def land(self, folder: Path, *seen: Table) -> None:
        """Put the history and all rows seen since into the landing file, at once or not at all."""
        write_csv(concatenate([self.history, *seen]), folder / LANDING, times=[self.recipe.split.time])


def load_scenario(progress: Progress, *, offline: bool) -> Scenario:
    """The card transactions, or, where they cannot be had, the data that come with scikit-learn."""
    if not offline:
        try:
            return _scenario(CARDS, "99,992 card transactions (evalml's demonstration data)", progress)
        except UnavailableError as e:
            progress("data", f"{e.message}: going on with the bundled data")
    return _scenario(CANCER, "offline: scikit-learn's breast cancer data, drawn anew from its 569 patients", progress)


def _scenario(bundled: str, note: str, progress: Progress) -> Scenario:
    loaded = load_recipe(bundled)
    recipe = loaded.recipe
    source = make_source(recipe.source, loaded.path.name)
    rows = source.read(recipe.wanted(), loaded.folder, progress).sorted_by(recipe.split.time)
    first, second = (int(len(rows) * share) for share in (HISTORY_SHARE, HISTORY_SHARE + STEADY_SHARE))
    return Scenario(
        recipe=recipe,
        bundled=bundled,
        note=note,
        history=rows.take(slice(0, first)),
        steady=rows.take(slice(first, second)),
        shifted=SHIFTS[recipe.recipe.name](rows.take(slice(second, len(rows))), 11),
    )
