"""LightGBM: Booster, the scikit-learn wrappers, text files.

LightGBM decides and adds in double on the values that it is given, float64 rows as they are; float32 rows are exact in
double. Values of at most 1e-35 are zero to it, a category is truncated towards zero, and with `zero_as_missing` zero is
missing, like NaN.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from outrider.compiler.frontends import ReadOptions
from outrider.compiler.frontends.convert import check_categories, digest, through_treelite
from outrider.compiler.frontends.wellformed import check_lightgbm
from outrider.compiler.model import Array, Label, Model, feature_names, forest_model, plain_labels
from outrider.compiler.trees.forest import Forest, Tree
from outrider.compiler.trees.read import read_treelite
from outrider.runtime.errors import BadModelError, UnsupportedError

if TYPE_CHECKING:
    import lightgbm
    import treelite

_RAW = ("none", "custom")  # objectives of the caller's own, whose scores are given as they are
_CATEGORICAL_BIT, _DEFAULT_LEFT_BIT, _MISSING_SHIFT, _MISSING_ZERO = 1, 2, 2, 1  # of LightGBM's `decision_type`


class LightGBMFrontend:
    """A Booster predicts up to its best iteration, as it does itself."""

    def read_object(self, source: Any, options: ReadOptions) -> Model:
        """A Booster or a wrapper (LGBMClassifier, LGBMRegressor, LGBMRanker)."""
        import lightgbm

        if isinstance(source, lightgbm.Booster):
            return _read_booster(source, options, source.model_to_string(), None)
        if not isinstance(source, lightgbm.LGBMModel):
            raise UnsupportedError(f"LightGBM objects of type {type(source).__name__} are not supported")
        return _read_wrapper(source, options)

    def read_file(self, path: Path, options: ReadOptions) -> Model:
        """A text file by `Booster.save_model`."""
        import lightgbm

        try:
            text = path.read_text()
        except UnicodeDecodeError as e:
            raise BadModelError(f"{path} is not a LightGBM text model") from e
        try:
            check_lightgbm(text)
        except BadModelError as e:
            raise BadModelError(f"{path} is not a complete and sound LightGBM model: {e.message}") from e
        try:
            booster = lightgbm.Booster(model_str=text)
        except (lightgbm.basic.LightGBMError, ValueError) as e:
            raise BadModelError(f"{path} is not a readable LightGBM model: {e}") from e
        return _read_booster(booster, options, text, digest(path.read_bytes()))


def _read_booster(booster: lightgbm.Booster, options: ReadOptions, text: str, sha256: str | None) -> Model:
    forest, objective = _read_forest(booster, text)
    labels = tuple(options.class_labels)
    if not labels and objective in ("binary", "multiclass", "multiclassova"):
        labels = tuple(range(max(forest.outputs, 2)))
    return _model(
        forest,
        booster.predict,
        booster,
        options=options,
        objective=objective,
        labels=labels,
        kind="Booster",
        sha256=sha256 or digest(text.encode()),
    )


def _read_wrapper(source: lightgbm.LGBMModel, options: ReadOptions) -> Model:
    import lightgbm
    from sklearn.exceptions import NotFittedError

    try:
        booster = source.booster_
    except NotFittedError as e:
        raise BadModelError(f"the {type(source).__name__} is not fitted") from e
    text = booster.model_to_string()
    forest, objective = _read_forest(booster, text)
    labels: tuple[Label, ...] = ()
    predict: Callable[..., Any] = source.predict
    if isinstance(source, lightgbm.LGBMClassifier) and objective not in _RAW:
        predict = source.predict_proba
        labels = tuple(options.class_labels) or plain_labels(source.classes_)
        forest = replace(forest, complement=forest.outputs == 1)
    return _model(
        forest,
        predict,
        booster,
        options=options,
        objective=objective,
        labels=labels,
        kind=type(source).__name__,
        sha256=digest(text.encode()),
    )


def _model(
    forest: Forest,
    predict: Callable[..., Any],
    booster: lightgbm.Booster,
    *,
    options: ReadOptions,
    objective: str,
    labels: tuple[Label, ...],
    kind: str,
    sha256: str,
) -> Model:
    import lightgbm

    def reference(rows: Array) -> Array:
        return np.asarray(predict(rows.astype(np.float64)))

    return forest_model(
        forest,
        reference,
        framework="lightgbm",
        framework_version=lightgbm.__version__,
        description=f"{kind}, {objective}, {len(forest.trees)} trees, {forest.nodes} nodes",
        sha256=sha256,
        probabilities=objective.startswith("multiclass") or (kind.endswith("Classifier") and objective not in _RAW),
        decides_in="float64",
        class_labels=labels,
        names=feature_names(options.feature_names, _own_names(booster)),
    )


def _own_names(booster: lightgbm.Booster) -> list[str] | None:
    """The booster's feature names, unless LightGBM made them up."""
    names: list[str] = booster.feature_name()
    return None if names == [f"Column_{i}" for i in range(len(names))] else names


def _read_forest(booster: lightgbm.Booster, text: str) -> tuple[Forest, str]:
    """The forest and the objective's name."""
    lines = text.splitlines()
    if any(line.strip() == "is_linear=1" for line in lines):
        raise UnsupportedError("LightGBM's linear trees are not supported", hint="train with linear_tree=False")
    if not any(line.startswith("Tree=") for line in lines):
        raise BadModelError("the model has zero trees", hint="train it for at least one round")
    for categories in _frame_categories(lines):
        check_categories("a feature of the model", categories)
    objective = _header(lines, "objective").split(" ")[0] or "none"
    forest = read_treelite(_import(booster, text, objective, int(_header(lines, "num_class"))), precision="float64")
    if objective in _RAW:
        forest = replace(forest, transform="identity")
    return replace(_with_missing(forest, lines), tiny_is_zero=True, negative_fraction_is_zero=True), objective


def _import(booster: lightgbm.Booster, text: str, objective: str, classes: int) -> treelite.Model:
    """Through Treelite, which takes several classes only with an objective that it knows."""
    import treelite

    what = f"this LightGBM model, whose objective is {objective!r},"
    if objective not in _RAW or classes == 1:
        return through_treelite(what, lambda: treelite.frontend.from_lightgbm(booster))
    lines = [line for line in text.split("\n") if not line.startswith("objective=")]
    lines.insert(lines.index(f"num_class={classes}"), f"objective=multiclass num_class:{classes}")
    with tempfile.TemporaryDirectory(prefix="outrider-lightgbm-") as folder:
        path = Path(folder, "model.txt")
        path.write_text("\n".join(lines))
        return through_treelite(what, lambda: treelite.frontend.load_lightgbm_model(path))


def _header(lines: list[str], name: str) -> str:
    return next((line.partition("=")[2] for line in lines if line.startswith(f"{name}=")), "")


def _frame_categories(lines: list[str]) -> list[list[object]]:
    """The categories of each categorical column of the frame that the model was trained on; nothing without a frame."""
    found = next((line.partition(":")[2] for line in reversed(lines) if line.startswith("pandas_categorical:")), "null")
    categories: list[list[object]] = json.loads(found) or []
    return categories


def _with_missing(forest: Forest, lines: list[str]) -> Forest:
    """Mark zero as missing where the numeric splits say so. LightGBM sets it for all features or for none.

    Treelite leaves out where zero goes by default, so that is read from the text.
    """
    kinds = _fields(lines, "decision_type")
    found = {kind >> _MISSING_SHIFT & 3 for tree in kinds for kind in tree if not kind & _CATEGORICAL_BIT}
    if _MISSING_ZERO not in found:
        return forest
    if found != {_MISSING_ZERO}:
        raise UnsupportedError("LightGBM models in which zero is missing for some features only are not supported")
    splits = iter(zip(kinds, _fields(lines, "left_child"), _fields(lines, "right_child"), strict=True))
    # A tree of a single leaf has no lines for its splits.
    trees = tuple(tree if tree.nodes == 1 else _with_defaults(tree, *next(splits)) for tree in forest.trees)
    return replace(forest, trees=trees, missing="zero")


def _with_defaults(tree: Tree, kinds: list[int], left: list[int], right: list[int]) -> Tree:
    """Walk the text's tree and ours side by side; children below 0 are leaves."""
    missing_right = tree.missing_right.copy()
    pairs = [(0, 0)]
    while pairs:
        theirs, ours = pairs.pop()
        missing_right[ours] = not kinds[theirs] & _DEFAULT_LEFT_BIT
        for child, own in ((left[theirs], tree.left[ours]), (right[theirs], tree.right[ours])):
            if child >= 0:
                pairs.append((child, int(own)))
    return replace(tree, missing_right=missing_right)


def _fields(lines: list[str], name: str) -> list[list[int]]:
    """The numbers of every line `name=1 2 3`, one line a tree that has splits."""
    found = (line.partition("=")[2].split() for line in lines if line.startswith(f"{name}="))
    return [[int(number) for number in numbers] for numbers in found if numbers]
