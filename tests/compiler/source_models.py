"""Models trained by the source libraries, from short recipes, with what each library itself predicts.

A recipe says all that a model is made of: the same one gives the same model. Shapes reach what kernels treat apart:
shallow and deep trees, trees of more than 256 leaves, features of more than 255 thresholds, rows of more than 256
features, few and many categories.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import lightgbm
import numpy as np
import xgboost
from hypothesis import strategies as st
from sklearn import ensemble
from threadpoolctl import threadpool_limits

from outrider.compiler.frontends import ReadOptions, read_model
from outrider.compiler.model import Model
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.narrow import narrow
from outrider.compiler.trees.rows import double_rows_from_thresholds, rows_from_thresholds
from outrider.compiler.verify import ATOL, RTOL

Array = np.ndarray
Predict = Callable[[Array], Array]
Task = Literal["regression", "two classes", "three classes"]

TASKS: tuple[Task, ...] = ("regression", "two classes", "three classes")
TINY_AND_NEAR = [0.0, -0.0, 1e-45, -1e-45, 1e-38, 1e-35, -1e-35, 1.0, float(np.nextafter(np.float32(1), np.float32(2)))]
SPECIAL = np.array([0.0, -0.0, 1e-45, -1e-45, 1.1e-38, 1e-35, -1e-35, 3.4e38, -3.4e38, -1.0, -0.5, 2.5, 999.0, 3e9])
LAST = 3.4028235677973362e38  # the last double that rounds to a finite float32


@dataclass(frozen=True)
class Shape:
    """Training data and limits of trees; 0 levels: as deep as they get. The last features have categories."""

    levels: int
    leaves: int
    rows: int = 400
    features: int = 6
    trees: int = 12  # of one output, at most
    categories: tuple[int, ...] = ()


SHAPES = {
    "six levels": Shape(6, 64),
    "shallow": Shape(3, 8, trees=40),
    "nine levels": Shape(9, 200, rows=600),
    "large": Shape(0, 700, rows=1500, trees=3),
    "many thresholds": Shape(8, 120, rows=1200, features=2),
    "wide": Shape(5, 30, rows=200, features=300, trees=20),
    "categories": Shape(7, 40, categories=(3, 12, 60)),
    "many categories": Shape(0, 300, rows=2000, features=3, trees=5, categories=(120,)),
}


@dataclass(frozen=True)
class Source:
    """A trained model, the library's own prediction, and rows like those that it was trained on."""

    model: Any
    predict: Predict
    rows: Array


@dataclass(frozen=True)
class Recipe:
    """`variant` names options of the library, `scale` is that of a regression's targets; `gaps`: values are missing."""

    library: str
    shape: str
    task: Task
    variant: str
    trees: int
    gaps: bool
    seed: int
    scale: float = 1.0

    def train(self) -> Source:
        """The model."""
        rows, target = training_data(SHAPES[self.shape], self.task, self.seed, gaps=self.gaps)
        if self.task == "regression":
            # Near zero XGBoost's own rounding to float32, tree by tree, is more than large leaves allow for.
            target = (target + 30 * (self.library == "xgboost" and self.scale > 1)) * self.scale
        with warnings.catch_warnings(), threadpool_limits(1):  # threads that wait for a busy core take seconds
            warnings.simplefilter("ignore")
            model, predict = _TRAIN[self.library](self, rows, target)
        return Source(model, _quietly(predict), rows)


def _quietly(predict: Predict) -> Predict:
    """Without the library's warnings about odd numbers."""

    def quiet(rows: Array) -> Array:
        with warnings.catch_warnings(), threadpool_limits(1):
            warnings.simplefilter("ignore")
            return predict(rows)

    return quiet


def recipes(library: str) -> st.SearchStrategy[Recipe]:
    """Recipes of models of a library."""
    return st.builds(
        lambda shape, share, **settings: Recipe(
            library=library, shape=shape, trees=1 + round(share * (SHAPES[shape].trees - 1)), **settings
        ),
        shape=st.sampled_from(list(SHAPES)),
        share=st.sampled_from([1.0, 0.5, 0.0]),
        task=st.sampled_from(TASKS),
        variant=st.sampled_from(list(VARIANTS[library])),
        scale=st.sampled_from([1.0, 1e-3, 1e4]),
        gaps=st.booleans(),
        seed=st.integers(0, 2**16),
    )


def training_data(shape: Shape, task: Task, seed: int, *, gaps: bool) -> tuple[Array, Array]:
    """float32 rows whose columns are of four kinds in turn, and a noisy target, so that trees grow to their limits."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(shape.rows, shape.features))
    rows[:, 1::4] = np.exp(3 * rows[:, 1::4])
    rows[:, 2::4] = np.round(2 * rows[:, 2::4]) / 2
    rows[:, 3::4] = rng.choice(TINY_AND_NEAR, rows[:, 3::4].shape)
    score = rng.normal(size=shape.rows) + rows[:, 0] + (rows[:, 1] > 1)
    for column, count in enumerate(shape.categories, shape.features - len(shape.categories)):
        rows[:, column] = rng.integers(0, count, shape.rows)
        score += 3 * rng.normal(size=count)[rows[:, column].astype(int)]
    if gaps:
        rows[rng.random(rows.shape) < 0.15] = np.nan
    target = score if task == "regression" else np.digitize(score, [0.5] if task == "two classes" else [-0.5, 1.0])
    return rows.astype(np.float32), target


# The libraries ------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "xgboost": {
        "depthwise": {},
        "lossguide": {"grow_policy": "lossguide"},
        "base score": {"base_score": 0.2},
        "dart": {"booster": "dart", "rate_drop": 0.3},
        "parallel": {"num_parallel_tree": 3, "subsample": 0.6},
        "one-hot": {"max_cat_to_onehot": 300},
        "partition": {"max_cat_to_onehot": 1},
        "vectors": {"multi_strategy": "multi_output_tree"},
    },
    "lightgbm": {
        "plain": {},
        "zero is missing": {"zero_as_missing": True},
        "nothing is missing": {"use_missing": False},
        "forest": {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6},
        "dart": {"boosting": "dart"},
        "one-hot": {"max_cat_to_onehot": 300},
        "partition": {"max_cat_to_onehot": 1},
    },
    "forests": {"random": {}, "extra": {}, "boosting": {}},
    "histogram": {"plain": {}, "poisson": {"loss": "poisson"}, "fast": {"learning_rate": 0.9}},
}


def _train_xgboost(recipe: Recipe, rows: Array, target: Array) -> tuple[Any, Predict]:
    shape = SHAPES[recipe.shape]
    objectives: dict[Task, dict[str, Any]] = {
        "regression": {"objective": "reg:squarederror"},
        "two classes": {"objective": "binary:logistic"},
        "three classes": {"objective": "multi:softprob", "num_class": 3},
    }
    limits = {"max_depth": shape.levels, "max_leaves": shape.leaves, "min_child_weight": 0, "max_bin": 2048}
    parameters = {**limits, "nthread": 1, "seed": recipe.seed, **objectives[recipe.task]}
    types = ["q"] * (shape.features - len(shape.categories)) + ["c"] * len(shape.categories)
    settings: dict[str, Any] = {"feature_types": types, "enable_categorical": True}
    matrix = xgboost.DMatrix(rows, label=target, **settings)
    options = {} if recipe.variant == "vectors" and shape.categories else VARIANTS["xgboost"][recipe.variant]
    booster = xgboost.train({**parameters, **options}, matrix, recipe.trees)

    def predict(given: Array) -> Array:
        """A DMatrix refuses infinities, and what becomes one by rounding; the in-place prediction takes them."""
        with np.errstate(over="ignore"):
            infinite = np.isinf(given.astype(np.float32)).any(axis=1)
        found = booster.predict(xgboost.DMatrix(np.where(infinite[:, None], 0, given), **settings))
        if infinite.any():
            found[infinite] = booster.inplace_predict(given[infinite])
        return np.asarray(found)

    return booster, predict


def _train_lightgbm(recipe: Recipe, rows: Array, target: Array) -> tuple[Any, Predict]:
    shape = SHAPES[recipe.shape]
    objectives: dict[Task, dict[str, Any]] = {
        "regression": {"objective": "regression"},
        "two classes": {"objective": "binary"},
        "three classes": {"objective": "multiclass", "num_class": 3},
    }
    limits = {"max_depth": shape.levels or -1, "num_leaves": shape.leaves, "min_data_in_leaf": 1}
    fine = {"min_data_in_bin": 1, "max_bin": 2000, "min_data_per_group": 1, "cat_smooth": 1, "cat_l2": 1}
    parameters = {**limits, **fine, "verbose": -1, "num_threads": 1, "seed": recipe.seed, **objectives[recipe.task]}
    categorical = list(range(shape.features - len(shape.categories), shape.features))
    data = lightgbm.Dataset(rows.astype(np.float64), label=target, categorical_feature=categorical)
    booster = lightgbm.train({**parameters, **VARIANTS["lightgbm"][recipe.variant]}, data, recipe.trees)
    return booster, lambda given: np.asarray(booster.predict(given.astype(np.float64)))


def _train_forest(recipe: Recipe, rows: Array, target: Array) -> tuple[Any, Predict]:
    shape = SHAPES[recipe.shape]
    kind = {"random": "RandomForest", "extra": "ExtraTrees", "boosting": "GradientBoosting"}[recipe.variant]
    made = getattr(ensemble, f"{kind}{_suffix(recipe)}")(
        n_estimators=recipe.trees,
        max_depth=shape.levels or None,
        max_leaf_nodes=shape.leaves,
        random_state=recipe.seed,
    )
    return _fitted(made, np.nan_to_num(rows) if recipe.variant == "boosting" else rows, target)


def _train_histogram(recipe: Recipe, rows: Array, target: Array) -> tuple[Any, Predict]:
    shape = SHAPES[recipe.shape]
    options = dict(VARIANTS["histogram"][recipe.variant])
    if "loss" in options and recipe.task == "regression":
        target = np.abs(target)
    elif "loss" in options:
        del options["loss"]
    made = getattr(ensemble, f"HistGradientBoosting{_suffix(recipe)}")(
        max_iter=recipe.trees,
        max_depth=shape.levels or None,
        max_leaf_nodes=shape.leaves,
        min_samples_leaf=1,
        categorical_features=list(range(shape.features - len(shape.categories), shape.features)) or None,
        early_stopping=False,
        random_state=recipe.seed,
        **options,
    )
    return _fitted(made, rows, target)


def _suffix(recipe: Recipe) -> str:
    return "Regressor" if recipe.task == "regression" else "Classifier"


def _fitted(estimator: Any, rows: Array, target: Array) -> tuple[Any, Predict]:
    estimator.fit(rows, target)
    return estimator, getattr(estimator, "predict_proba", None) or estimator.predict


_TRAIN = {
    "xgboost": _train_xgboost,
    "lightgbm": _train_lightgbm,
    "forests": _train_forest,
    "histogram": _train_histogram,
}


def read(source: Source) -> tuple[Model, Forest]:
    """The model, and the forest as kernels see it."""
    model = read_model(source.model, ReadOptions())
    assert isinstance(model.payload, Forest)
    return model, narrow(model.payload, model.decides_in).forest


# Rows ---------------------------------------------------------------------------------------------------------------


def batches(source: Source, model: Model, most: int = 700) -> list[Array]:
    """What kernels are put to the test with, as far as the library takes it: float32 rows, and float64 ones.

    Rows of the training data; each threshold with its neighbours; rows of one special value throughout. Categories are
    known, unknown, negative, fractional. Then doubles in between.
    """
    forest = model.payload
    assert isinstance(forest, Forest)
    takes: dict[str, Any] = {"nan": model.accepts_nan, "inf": model.accepts_inf, "max_rows": most}
    special = [*SPECIAL, *[np.nan] * model.accepts_nan, *[np.inf, -np.inf] * model.accepts_inf]
    doubles = double_rows_from_thresholds(forest, seed=1, **takes)
    single = [
        source.rows[:most] if model.accepts_nan else np.nan_to_num(source.rows[:most]),
        rows_from_thresholds(forest, seed=1, **takes),
        np.repeat(np.array(special)[:, None], forest.features, axis=1).astype(np.float32),
    ]
    return [np.concatenate(single), doubles if model.accepts_inf else doubles.clip(-LAST, LAST)]


def assert_close(found: Array, wanted: Array, rows: Array) -> None:
    """As near to the library as a compiled model has to be; else a row that shows it."""
    assert found.shape == wanted.shape
    assert found.dtype == np.float32
    wide = wanted.astype(np.float64)
    off = ~(np.abs(found - wide) <= ATOL + RTOL * np.abs(wide)) & ~(np.isnan(found) & np.isnan(wide))
    worst = np.flatnonzero(off.reshape(len(off), -1).any(axis=1))[:1]
    assert not len(worst), f"{off.sum()} values; {found[worst]} for {wide[worst]}, {rows.dtype} row {rows[worst]!r}"
