"""Recipes: what to train, from which rows, on which features, in one TOML file.

```toml
[recipe]
name = "card-fraud"

[source]
kind = "csv"
path = "transactions.csv"

[split]
time = "datetime"     # rows are split in order of time
valid = 0.1           # a share of the rows, or a duration (12h, 5d), before the test rows
test = 0.1            # the newest rows, which neither training nor early stopping sees

[[columns]]
name = "amount"
kind = "number"

[[features]]
name = "log_amount"
step = "log1p"
inputs = ["amount"]

[label]
column = "fraud"
values = ["False", "True"]

[model]
kind = "xgboost"
```

A recipe may start with `extends = "card_fraud"` (a bundled recipe, or a path relative to it) and give only the tables
that differ; a table that it gives replaces the whole table of the other recipe.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from outrider.runtime.bundle.manifest import Name
from outrider.runtime.errors import BadRecipeError
from outrider.runtime.features import ColumnKind, FeaturePlan, FeatureStep, RawColumn
from outrider.trainer.tables import make_model, make_source

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"
_MAX_EXTENDS = 8

Share = Annotated[float, Meta(gt=0, lt=1)]
Duration = Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)?[smhd]$")]
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all tables of a recipe."""


class RecipeInfo(_Part, frozen=True, kw_only=True):
    """`[recipe]`: the name that its models carry, and what it is for."""

    name: Name
    description: str = ""


class Split(_Part, frozen=True, kw_only=True):
    """`[split]`: rows in order of `time`, from oldest to newest: history, then train, valid and test.

    - `history`: share of the rows, the oldest, that only label-using feature steps learn from.
    - `valid`, `test`: a share, or a duration: the newest rows are `test`, those before them `valid`.
    - `recent`: hold out blocks of `block` spread over this last stretch of time instead, so that the model also
      learns from the very newest rows (after a sudden change they are the only ones that know of it); `valid` and
      `test` are then shares of the blocks. A block's part follows from its time alone, so rows that are held out
      for a retrained model were never trained on by the one before it.
    - `half_life`: a training row that is so much older than the newest one counts half; None: all count alike.
    - `window`: only rows at most so much older than the newest one are used; None: all.
    """

    time: str
    history: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    valid: Share | Duration = 0.1
    test: Share | Duration = 0.1
    recent: Duration | None = None
    block: Duration = "3h"
    half_life: Duration | None = None
    window: Duration | None = None


class Column(_Part, frozen=True, kw_only=True):
    """`[[columns]]`: a raw column that the device is given."""

    name: str
    kind: ColumnKind


class Feature(_Part, frozen=True, kw_only=True):
    """`[[features]]`: a step of `outrider.runtime.features.STEPS` and its parameters.

    `keep = false` makes a value for later steps that the model does not see.
    """

    name: str
    step: str
    inputs: tuple[str, ...]
    params: dict[str, float | int | str | bool | tuple[str | float, ...]] = {}
    keep: bool = True


class Label(_Part, frozen=True, kw_only=True):
    """`[label]`: the column with the truth, its values as text, and the classes that they stand for.

    The order is that of the model's classes; with two, the last is the positive one.
    """

    column: str
    values: Annotated[tuple[str, ...], Meta(min_length=2)]
    classes: tuple[int | str, ...] = ()

    def class_labels(self) -> tuple[int | str, ...]:
        """What the model answers, in the order of its classes."""
        return self.classes or self.values


class Calibration(_Part, frozen=True, kw_only=True):
    """`[calibration]`: how many of the newest rows go into the model directory for parity and golden vectors."""

    rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000


class BaselineSettings(_Part, frozen=True, kw_only=True):
    """`[baseline]`: what live rows are compared with.

    - `last`: only rows at most so much older than the newest one; None: all but the history.
    - `blocks`: how many blocks of time to cut them into, to learn how far distributions move by themselves.
    """

    last: Duration | None = None
    blocks: Annotated[int, Meta(ge=4, le=4096)] = 64


class GateSettings(_Part, frozen=True, kw_only=True):
    """`[gate]`: what a candidate must gain over the champion, on how many held-out rows at least."""

    metric: Literal["accuracy", "log_loss", "auc"] = "accuracy"
    min_gain: float = 0.0
    min_rows: Annotated[int, Meta(ge=1)] = 100


class CompileSettings(_Part, frozen=True, kw_only=True):
    """`[compile]`: targets for retrained models; empty: those of the devices that will get the release."""

    targets: tuple[str, ...] = ()
    goals: tuple[str, ...] = ()


class Recipe(_Part, frozen=True, kw_only=True):
    """A whole recipe. `source` and `model` are checked by the tables `SOURCES` and `MODELS`."""

    recipe: RecipeInfo
    source: dict[str, Any]
    split: Split
    columns: Annotated[tuple[Column, ...], Meta(min_length=1)]
    features: Annotated[tuple[Feature, ...], Meta(min_length=1)]
    label: Label
    model: dict[str, Any]
    calibration: Calibration = Calibration()
    baseline: BaselineSettings = BaselineSettings()
    gate: GateSettings = GateSettings()
    compile: CompileSettings = CompileSettings()

    def plan(self) -> FeaturePlan:
        """The declared feature plan, not yet fitted."""
        return FeaturePlan(
            columns=tuple(RawColumn(name=column.name, kind=column.kind) for column in self.columns),
            steps=tuple(
                FeatureStep(op=feature.step, inputs=feature.inputs, output=feature.name, params=feature.params)
                for feature in self.features
            ),
            outputs=tuple(feature.name for feature in self.features if feature.keep),
        )

    def wanted(self) -> dict[str, ColumnKind]:
        """Every column to read: the raw columns, the time and the label."""
        kinds: dict[str, ColumnKind] = {column.name: column.kind for column in self.columns}
        kinds.setdefault(self.split.time, "time")
        kinds.setdefault(self.label.column, "string")
        return kinds


class LoadedRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """A recipe that was read: where it lies, its name in one word, and the SHA-256 of its tables."""

    recipe: Recipe
    path: Path
    sha256: str

    @property
    def folder(self) -> Path:
        """The folder that the recipe's paths are relative to."""
        return self.path.parent


def load_recipe(path: Path | str) -> LoadedRecipe:
    """Read and check a recipe: a path, or the name of a bundled one (`card_fraud`, `breast_cancer`).

    Raises BadRecipeError naming the unknown key and the known ones, or the wrong value.
    """
    location = find_recipe(path)
    tables = _read_tables(location)
    recipe = parse_recipe(tables, origin=location.name)
    digest = hashlib.sha256(msgspec.json.encode(tables, order="deterministic")).hexdigest()
    return LoadedRecipe(recipe=recipe, path=location, sha256=digest)


def bundled_recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def find_recipe(path: Path | str, folder: Path | None = None) -> Path:
    """Where a recipe lies: a file, relative to `folder` where given, or a bundled one by name."""
    location = (folder or Path()) / path
    if location.is_file():
        return location.resolve()
    bundled = RECIPES / f"{path}.toml"
    if str(path) in bundled_recipes():
        return bundled
    raise BadRecipeError(f"there is no recipe {path}", hint=f"give a TOML file, or {' or '.join(bundled_recipes())}")


def parse_recipe(tables: dict[str, Any], *, origin: str) -> Recipe:
    """Tables as a checked recipe. Raises BadRecipeError."""
    try:
        recipe = msgspec.convert(tables, Recipe)
    except msgspec.ValidationError as e:
        raise _explain(e, tables, origin) from e
    _check(recipe, origin)
    return recipe


def seconds(duration: str) -> float:
    """A duration such as `12h` in seconds."""
    return float(duration[:-1]) * _SECONDS[duration[-1]]


def _read_tables(location: Path) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for _ in range(_MAX_EXTENDS):
        try:
            own = tomllib.loads(location.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as e:
            raise BadRecipeError(f"{location} cannot be read: {e}") from e
        base = own.pop("extends", None)
        tables = {**own, **tables}
        if base is None:
            return tables
        if not isinstance(base, str):
            raise BadRecipeError(f"{location.name}: extends names a recipe, got {base!r}")
        location = find_recipe(base, location.parent)
    raise BadRecipeError(f"{location} extends itself, or too many recipes")


def _explain(error: msgspec.ValidationError, tables: dict[str, Any], origin: str) -> BadRecipeError:
    """The same complaint with the keys that the table knows."""
    text = str(error)
    place = text.rpartition("`$")[2].rstrip("`").lstrip(".") if "`$" in text else ""
    table = place.partition("[")[0].partition(".")[0]
    known = Recipe.__struct_fields__ if not table else _KNOWN.get(table, ())
    where = f"{origin}: [{table}]" if table in tables else origin
    hint = f"known keys: {', '.join((*known, 'extends') if not table else known)}" if known else None
    return BadRecipeError(f"{where}: {text}", hint=hint)


_KNOWN: dict[str, tuple[str, ...]] = {
    "recipe": RecipeInfo.__struct_fields__,
    "split": Split.__struct_fields__,
    "columns": Column.__struct_fields__,
    "features": Feature.__struct_fields__,
    "label": Label.__struct_fields__,
    "calibration": Calibration.__struct_fields__,
    "baseline": BaselineSettings.__struct_fields__,
    "gate": GateSettings.__struct_fields__,
    "compile": CompileSettings.__struct_fields__,
}


def _check(recipe: Recipe, origin: str) -> None:
    """What types alone cannot say."""
    from outrider.runtime.features.transform import make_steps

    make_source(recipe.source, origin)
    make_model(recipe.model, origin)
    steps = make_steps(recipe.plan())
    if recipe.split.history == 0 and any(step.uses_labels() for step in steps):
        raise BadRecipeError(
            f"{origin}: a feature learns from labels, but [split] history is 0",
            hint="such a step must learn from rows that the model is not trained on; give history = 0.5, or values",
        )
    names = {column.name: column.kind for column in recipe.columns}
    if recipe.label.column in names:
        raise BadRecipeError(f"{origin}: the label {recipe.label.column!r} is also a raw column, so it would leak")
    if names.get(recipe.split.time, "time") != "time":
        raise BadRecipeError(f"{origin}: [split] time names {recipe.split.time!r}, which is no column of kind time")
    if recipe.label.classes and len(recipe.label.classes) != len(recipe.label.values):
        raise BadRecipeError(f"{origin}: [label] has {len(recipe.label.values)} values, but other classes")
    held_out = [share for share in (recipe.split.valid, recipe.split.test) if isinstance(share, float)]
    if recipe.split.recent is not None and len(held_out) < 2:
        raise BadRecipeError(f"{origin}: [split] valid and test must be shares where recent is given")
    if sum(held_out) >= 1:
        raise BadRecipeError(f"{origin}: [split] leaves no rows to train on")
