"""scikit-learn: forests, extra trees, gradient boosting (both kinds), isolation forests.

Histogram gradient boosting decides in double. The others round every feature to float32 first; an isolation forest
takes what becomes infinite by that, the others refuse it. All of them add in double.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.frontends import SUPPORTED, ReadOptions
from outrider.compiler.frontends.convert import digest, through_treelite
from outrider.compiler.model import Array, Label, Model, feature_names, forest_model, plain_labels
from outrider.compiler.trees.forest import CATEGORY, MAX_CATEGORY, CategorySplit, Forest, Tree
from outrider.compiler.trees.read import read_treelite
from outrider.runtime.errors import BadModelError, UnsupportedError

_HISTOGRAM = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")
_BOOSTED = ("GradientBoostingClassifier", "GradientBoostingRegressor")
_FORESTS = ("RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor")
_ISOLATION = "IsolationForest"


class SklearnFrontend:
    """Reads fitted estimators; scikit-learn has no file format but pickles, which come here as objects."""

    def read_object(self, source: Any, options: ReadOptions) -> Model:
        """A fitted tree ensemble."""
        from sklearn.base import is_classifier
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted

        kind = _kind(source)
        try:
            check_is_fitted(source)
        except NotFittedError as e:
            raise BadModelError(f"the {kind} is not fitted") from e
        forest, sha256 = _read_forest(source, kind)
        predict = source.predict
        labels: tuple[Label, ...] = ()
        classes: tuple[int, ...] = ()
        if kind == _ISOLATION:
            predict = source.score_samples
        elif is_classifier(source) and getattr(source, "n_outputs_", 1) > 1:
            predict, classes = _side_by_side(source.predict_proba), tuple(map(len, source.classes_))
        elif is_classifier(source):
            predict = source.predict_proba
            labels = tuple(options.class_labels) or plain_labels(source.classes_)
        return forest_model(
            forest,
            _reference(predict, source),
            framework="sklearn",
            framework_version=_version(),
            description=f"{kind}, {len(forest.trees)} trees, {forest.nodes} nodes",
            sha256=sha256,
            probabilities=is_classifier(source),
            decides_in="float64" if kind in _HISTOGRAM else "float32",
            class_labels=labels,
            classes=classes,
            names=feature_names(options.feature_names, _own_names(source)),
        )

    def read_file(self, path: Path, options: ReadOptions) -> Model:
        """Never reached by the table: a scikit-learn model is stored as a pickle."""
        raise BadModelError(f"{path} is not a scikit-learn model", hint="scikit-learn models are stored as pickles")


def _kind(source: Any) -> str:
    """The scikit-learn class that the object is of, or derives from. Raises UnsupportedError."""
    known = {*_HISTOGRAM, *_BOOSTED, *_FORESTS, _ISOLATION}
    for kind in type(source).__mro__:
        if kind.__module__.startswith("sklearn.") and kind.__name__ in known:
            return kind.__name__
    name = type(source).__name__
    hint = "compile the model inside it" if hasattr(source, "steps") else f"supported are {SUPPORTED}"
    raise UnsupportedError(f"the scikit-learn estimator {name} is not supported", hint=hint)


def _read_forest(source: Any, kind: str) -> tuple[Forest, str]:
    import treelite

    given = source
    known = _known_categories(source) if kind in _HISTOGRAM else {}
    if kind in _BOOSTED:
        given = copy.copy(source)  # with as many trees as there are, not as were planned, and without its start
        given.n_estimators = len(source.estimators_)
        given.init_ = "zero"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a missing category is cast to an integer on the way
        model = through_treelite(f"this {kind}", lambda: treelite.sklearn.import_model(given))
    forest = read_treelite(model, precision="float64")
    if kind in _BOOSTED:
        forest = replace(forest, base=_start(source, forest))
    sha256 = digest(bytes(model.serialize_bytes()))
    if kind == _ISOLATION:
        forest = replace(forest, transform="isolation")
        if forest.scale == 0:  # paths through single samples have no length: every row scores -2^-1
            forest = replace(forest, scale=1.0, base=np.ones(1))
    if kind in ("GradientBoostingClassifier", "HistGradientBoostingClassifier") and forest.outputs == 1:
        # The exponential loss is half of the log-odds: its probability is sigmoid(2 x).
        forest = replace(forest, complement=True, scale=2.0 if source.loss == "exponential" else 1.0)
    if known:
        trees = tuple(_with_known(tree, known) if tree.categories else tree for tree in forest.trees)
        forest = replace(forest, trees=trees, exact_categories=True)
    return forest, sha256


def _start(source: Any, forest: Forest) -> NDArray[np.float64]:
    """The scores that boosting starts from, float64 [outputs]. Raises UnsupportedError where they depend on the row."""
    init = source.init_
    constant = isinstance(init, str) or (
        type(init).__name__ in ("DummyClassifier", "DummyRegressor") and init.strategy != "stratified"
    )
    if not constant:
        raise UnsupportedError(
            f"gradient boosting that starts from the predictions of a {type(init).__name__} is not supported",
            hint="init=None, 'zero' and constant dummy estimators are",
        )
    scores: NDArray[np.float64] = source._raw_predict_init(np.zeros((1, forest.features), np.float32))[0]
    return np.asarray(scores, np.float64)


def _side_by_side(predict: Callable[..., Any]) -> Callable[..., Array]:
    """The probabilities of several targets, a matrix each, as one matrix of all columns."""
    return lambda rows: np.concatenate(predict(rows), axis=1)


def _known_categories(source: Any) -> dict[int, frozenset[int]]:
    """The categories that training has seen, by feature. Raises UnsupportedError for others than integers from 0.

    Those it has not seen go where missing values go; Treelite keeps only the ones that are sent left.
    """
    if getattr(source, "is_categorical_", None) is None or not any(source.is_categorical_):
        return {}
    encoder = source._preprocessor.named_transformers_["encoder"]
    features = np.flatnonzero(source.is_categorical_).tolist()
    return {feature: _integers(found) for feature, found in zip(features, encoder.categories_, strict=True)}


def _integers(categories: NDArray[Any]) -> frozenset[int]:
    try:
        values = np.asarray(categories, np.float64)
    except (TypeError, ValueError) as e:
        raise UnsupportedError("text categories are not supported", hint="encode them as integers from 0") from e
    values = values[~np.isnan(values)]
    if ((values < 0) | (values >= MAX_CATEGORY) | (values != np.floor(values))).any():
        raise UnsupportedError("categories other than integers from 0 are not supported")
    return frozenset(values.astype(int).tolist())


def _with_known(tree: Tree, known: dict[int, frozenset[int]]) -> Tree:
    splits = list(tree.categories)
    for node in np.flatnonzero(tree.kind == CATEGORY).tolist():
        split = splits[tree.payload[node]]
        seen = known[int(tree.feature[node])]
        right = seen - split.left if split.other_right else split.right & seen
        splits[tree.payload[node]] = CategorySplit(
            right=right, left=seen - right, other_right=split.missing_right, missing_right=split.missing_right
        )
    return replace(tree, categories=tuple(splits))


def _reference(predict: Callable[..., Any], source: Any) -> Callable[[Array], Array]:
    """The estimator's own prediction; where it was fitted on a frame, it is given one."""
    names = _own_names(source)

    def run(rows: Array) -> Array:
        if names is None:
            return np.asarray(predict(rows))
        import pandas

        return np.asarray(predict(pandas.DataFrame(rows, columns=names)))

    return run


def _own_names(source: Any) -> tuple[str, ...] | None:
    names = getattr(source, "feature_names_in_", None)
    return None if names is None else tuple(map(str, names))


def _version() -> str:
    import sklearn

    return str(sklearn.__version__)
