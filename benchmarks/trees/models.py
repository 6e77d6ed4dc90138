"""The cases: five synthetic shapes from seeds (a-e), random models of each shape, real data, and one of 5,000 trees.

| Shape | Model |
| --- | --- |
| a | XGBoost, 30 features, 100 trees of depth 6, two classes |
| b | XGBoost, 100 features, 500 trees of depth 8, two classes |
| c | XGBoost, 50 features, 100 rounds of 10 classes, depth 8 |
| d | LightGBM, 40 features (10 of them categories), 500 trees of 63 leaves |
| e | scikit-learn random forest, 30 features, 200 trees grown to the end on 20,000 rows |
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from benchmarks.trees.data import REAL, Data, Floats, Recipe, card_fraud, synthetic

Framework = Literal["xgboost", "lightgbm", "scikit-learn"]
POOL = 65_536  # rows to predict
#: On a busy machine the barriers of several threads cost more than they gain; and one thread leaves no pool behind.
_TRAINING_THREADS = 1
_SUFFIX: dict[Framework, str] = {"xgboost": ".ubj", "lightgbm": ".txt", "scikit-learn": ".pkl"}


@dataclass(frozen=True)
class Spec:
    """One model to train. `size` is the depth (XGBoost), the leaves (LightGBM) or 0 for no limit (random forest).

    `bins` bounds the thresholds a feature. A real data set is named by `data`; otherwise `recipe` makes the rows.
    """

    name: str
    shape: str
    framework: Framework
    trees: int
    size: int
    recipe: Recipe | None = None
    data: str | None = None
    bins: int = 256
    seed: int = 0

    @property
    def description(self) -> str:
        """The settings in words."""
        what = {"xgboost": f"depth {self.size}", "lightgbm": f"{self.size} leaves", "scikit-learn": "no depth limit"}
        text = f"{self.framework}, {self.trees} rounds, {what[self.framework]}, {self.bins} bins"
        if self.recipe is not None:
            r = self.recipe
            text += f", {r.features} features, {r.classes} classes, {r.missing:.0%} missing"
            text += f", {len(r.categories)} categorical" if r.categories else ""
        return text


@dataclass(frozen=True)
class Case:
    """A trained model: the object, its file, rows that it never saw, and what it was trained on."""

    spec: Spec
    description: str
    model: Any
    path: Path
    rows: Floats
    data: Data | None
    reference: Callable[[Floats], Any]


SHAPES: dict[str, Spec] = {
    "a": Spec("a", "a", "xgboost", 100, 6, Recipe(30, 20_000, 2, 0.02)),
    "b": Spec("b", "b", "xgboost", 500, 8, Recipe(100, 20_000, 2, 0.02)),
    "c": Spec("c", "c", "xgboost", 100, 8, Recipe(50, 20_000, 10, 0.02)),
    "d": Spec("d", "d", "lightgbm", 500, 63, Recipe(40, 20_000, 2, 0.02, (4, 8, 12, 16, 20, 24, 32, 40, 48, 60))),
    "e": Spec("e", "e", "scikit-learn", 200, 0, Recipe(30, 20_000, 2)),
}
EXTRAS: dict[str, Spec] = {
    "card": Spec("card", "real", "xgboost", 0, 0, data="card"),
    "census": Spec("census", "real", "lightgbm", 300, 63, data="census"),
    "letter": Spec("letter", "real", "xgboost", 100, 8, data="letter"),
    "magic": Spec("magic", "real", "scikit-learn", 200, 0, data="magic"),
    "5000": Spec("5000", "large", "xgboost", 5000, 6, Recipe(40, 10_000, 2, 0.02)),
}


def specs(names: Sequence[str], random: int) -> list[Spec]:
    """The named cases, each shape followed by `random` models of it. `b7`: the seventh of those of b.

    Raises KeyError for a name that is none.
    """
    known = {**SHAPES, **EXTRAS}
    chosen = []
    for name in names:
        if name not in known and name[:1] in SHAPES and name[1:].isdecimal():
            chosen.append(random_spec(name[0], int(name[1:])))
            continue
        chosen.append(known[name])
        if name in SHAPES:
            chosen += [random_spec(name, seed) for seed in range(1, random + 1)]
    return chosen


def random_spec(shape: str, seed: int) -> Spec:
    """A model of a shape with other features, thresholds, missing values and depth; the number of trees stays."""
    base = SHAPES[shape]
    assert base.recipe is not None
    rng = np.random.default_rng([seed, ord(shape)])
    recipe = base.recipe
    features = round(recipe.features * 2.0 ** rng.uniform(-1, 1))
    sizes = tuple(int(size) for size in np.geomspace(2, rng.integers(16, 200), len(recipe.categories)))
    size = base.size
    if base.framework == "xgboost":
        size += int(rng.integers(-2, 2))
    elif base.framework == "lightgbm":
        size = int(rng.integers(31, 128))
    return replace(
        base,
        name=f"{shape}{seed}",
        size=size,
        bins=int(rng.choice([32, 64, 256, 1024])),
        recipe=replace(
            recipe,
            features=max(features, len(sizes) + 8),
            missing=float(rng.choice([0.0, 0.05, 0.2])),
            categories=sizes,
            rounded=float(rng.uniform(0, 0.5)),
        ),
        seed=seed,
    )


def train(spec: Spec, folder: Path) -> Case:
    """Train a case and write its model file into the folder. Raises UnavailableError where real data cannot be had."""
    path = folder / f"model{_SUFFIX[spec.framework]}"
    if spec.data == "card":
        return _card(spec, path)
    if spec.recipe is not None:
        data = synthetic(spec.recipe, spec.seed, POOL)
    else:
        assert spec.data is not None
        data = REAL[spec.data](spec.seed)
    model, reference = _FITS[spec.framework](spec, data, path)
    return Case(spec, spec.description, model, path, _pool(data.test), data, reference)


def _card(spec: Spec, path: Path) -> Case:
    import xgboost

    made = card_fraud()
    path.write_bytes(made.model)
    booster = xgboost.Booster(model_file=str(path))
    text = f"xgboost, {booster.num_boosted_rounds()} rounds, by the recipe card_fraud"
    return Case(spec, text, booster, path, _pool(made.rows), None, booster.inplace_predict)


def _fit_xgboost(spec: Spec, data: Data, path: Path) -> tuple[Any, Callable[[Floats], Any]]:
    import xgboost

    classes = int(data.target.max()) + 1
    settings = {"max_depth": spec.size, "max_bin": spec.bins, "tree_method": "hist", "seed": spec.seed}
    settings["nthread"] = _TRAINING_THREADS
    if classes > 2:
        settings |= {"objective": "multi:softprob", "num_class": classes}
    else:
        settings |= {"objective": "binary:logistic"}
    booster = xgboost.train(settings, xgboost.DMatrix(data.rows, data.target), spec.trees)
    booster.save_model(path)
    return booster, booster.inplace_predict


def _fit_lightgbm(spec: Spec, data: Data, path: Path) -> tuple[Any, Callable[[Floats], Any]]:
    import lightgbm

    settings = {"objective": "binary", "num_leaves": spec.size, "seed": spec.seed, "verbose": -1, "max_bin": spec.bins}
    settings["num_threads"] = _TRAINING_THREADS
    rows = data.rows.astype(np.float64)
    table = lightgbm.Dataset(rows, data.target, categorical_feature=list(data.categories) or "auto")
    booster = lightgbm.train(settings, table, spec.trees)
    booster.save_model(path)
    return booster, lambda rows: booster.predict(rows.astype(np.float64))


def _fit_sklearn(spec: Spec, data: Data, path: Path) -> tuple[Any, Callable[[Floats], Any]]:
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(spec.trees, n_jobs=_TRAINING_THREADS, random_state=spec.seed)
    forest.fit(data.rows, data.target)
    forest.set_params(n_jobs=None)
    path.write_bytes(pickle.dumps(forest))
    return forest, forest.predict_proba


_FITS: dict[Framework, Callable[[Spec, Data, Path], tuple[Any, Callable[[Floats], Any]]]] = {
    "xgboost": _fit_xgboost,
    "lightgbm": _fit_lightgbm,
    "scikit-learn": _fit_sklearn,
}


def _pool(rows: Floats) -> Floats:
    """`POOL` rows, C-contiguous; they repeat where there are fewer."""
    return np.ascontiguousarray(rows[np.arange(POOL) % len(rows)], np.float32)


def quiet() -> None:
    """Converters warn about their own future; it is no news here."""
    warnings.simplefilter("ignore")
