"""XGBoost: Booster, the scikit-learn wrappers, `.json` and `.ubj` files.

XGBoost rounds every feature to float32 before it compares, float64 rows too, and adds in float32. A DMatrix refuses
infinities and what becomes one by rounding; the in-place prediction, which the wrappers use, takes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from outrider.compiler.frontends import ReadOptions
from outrider.compiler.frontends.convert import check_categories, digest, through_treelite
from outrider.compiler.frontends.ubjson import read_ubjson
from outrider.compiler.frontends.wellformed import booster_model, check_xgboost
from outrider.compiler.model import Array, Label, Model, feature_names, forest_model, plain_labels
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.read import read_treelite
from outrider.runtime.errors import BadModelError, UnsupportedError

if TYPE_CHECKING:
    import xgboost

_PROBABILITY = ("binary:logistic", "binary:hinge", "multi:softprob")


class XGBoostFrontend:
    """A Booster predicts with all its trees, as it does itself; a wrapper up to its best iteration."""

    def read_object(self, source: Any, options: ReadOptions) -> Model:
        """A Booster or a wrapper (XGBClassifier, XGBRegressor, XGBRanker, XGBRF…)."""
        import xgboost

        if isinstance(source, xgboost.Booster):
            return _read_booster(source, options, digest(bytes(source.save_raw("ubj"))))
        if not isinstance(source, xgboost.XGBModel):
            raise UnsupportedError(f"XGBoost objects of type {type(source).__name__} are not supported")
        return _read_wrapper(source, options)

    def read_file(self, path: Path, options: ReadOptions) -> Model:
        """A `.json` or `.ubj` file, read as a Booster."""
        import xgboost

        data = path.read_bytes()
        _check_file(data, path)
        booster = xgboost.Booster()
        try:
            booster.load_model(bytearray(data))
        except (xgboost.core.XGBoostError, ValueError, UnicodeDecodeError) as e:
            raise BadModelError(f"{path} is not a readable XGBoost model: {_first_line(e)}") from e
        return _read_booster(booster, options, digest(data))


def _read_booster(booster: xgboost.Booster, options: ReadOptions, sha256: str) -> Model:
    objective = _check(booster)
    forest = _read_forest(booster)
    labels = tuple(options.class_labels)
    if not labels and objective in _PROBABILITY and (forest.outputs == 1 or objective.startswith("multi")):
        labels = tuple(range(max(forest.outputs, 2)))
    if objective == "multi:softmax":
        forest, labels = replace(forest, transform="argmax"), ()
    return _model(
        forest,
        booster_predict(booster),
        booster,
        options=options,
        sha256=sha256,
        objective=objective,
        labels=labels,
        kind="Booster",
    )


def _read_wrapper(source: xgboost.XGBModel, options: ReadOptions) -> Model:
    import xgboost
    from sklearn.exceptions import NotFittedError

    try:
        booster = source.get_booster()
    except NotFittedError as e:
        raise BadModelError(f"the {type(source).__name__} is not fitted") from e
    objective = _check(booster)
    _first, last = source._get_iteration_range(None)
    forest = _read_forest(booster[0:last] if 0 < last < booster.num_boosted_rounds() else booster)
    labels: tuple[Label, ...] = ()
    predict: Callable[[Array], Array] = source.predict
    if isinstance(source, xgboost.XGBClassifier):
        predict = source.predict_proba
        multilabel = not objective.startswith("multi:") and forest.outputs > 1
        if not multilabel:
            labels = tuple(options.class_labels) or plain_labels(source.classes_)
            forest = replace(forest, complement=forest.outputs == 1)
    return _model(
        forest,
        predict,
        booster,
        options=options,
        sha256=digest(bytes(booster.save_raw("ubj"))),
        objective=objective,
        labels=labels,
        kind=type(source).__name__,
    )


def _model(
    forest: Forest,
    predict: Callable[[Array], Array],
    booster: xgboost.Booster,
    *,
    options: ReadOptions,
    sha256: str,
    objective: str,
    labels: tuple[Label, ...],
    kind: str,
) -> Model:
    import xgboost

    return forest_model(
        forest,
        predict,
        framework="xgboost",
        framework_version=xgboost.__version__,
        description=f"{kind}, {objective}, {len(forest.trees)} trees, {forest.nodes} nodes",
        sha256=sha256,
        probabilities=objective.startswith("multi:") or kind.endswith("Classifier"),
        decides_in="float32",
        class_labels=labels,
        names=feature_names(options.feature_names, booster.feature_names),
    )


def _read_forest(booster: xgboost.Booster) -> Forest:
    import treelite

    if "c" not in (booster.feature_types or ()):
        model = through_treelite("this XGBoost model", lambda: treelite.frontend.from_xgboost(booster))
    else:
        content = json.loads(bytes(booster.save_raw("json")))
        _drop_categories(content, booster.feature_names)
        text = json.dumps(content)
        model = through_treelite("this XGBoost model", lambda: treelite.frontend.from_xgboost_json(text))
    return read_treelite(model, precision="float32")


def _drop_categories(content: Mapping[str, Any], names: Sequence[str] | None) -> None:
    """Take the categories of a training frame out of the model, which Treelite does not read.

    Trees hold a category's place in them. A compiled model is given numbers, which must be those places.
    Raises UnsupportedError where they are not.
    """
    found = booster_model(content).get("cats")
    if not isinstance(found, dict) or not found.get("enc"):
        return
    for feature, encoded in enumerate(found["enc"]):
        what = f"the feature {names[feature] if names else feature!r}"
        check_categories(what, encoded.get("values", ()), text="offsets" in encoded)
    found.update(enc=[], feature_segments=[], sorted_idx=[])


def booster_predict(booster: xgboost.Booster) -> Callable[[Array], Array]:
    """`Booster.predict` on rows. A DMatrix refuses infinities, the in-place prediction takes them."""
    import xgboost

    def predict(rows: Array) -> Array:
        if np.isinf(rows).any():
            return np.asarray(booster.inplace_predict(rows, validate_features=False))
        matrix = xgboost.DMatrix(
            rows, feature_names=booster.feature_names, feature_types=booster.feature_types, enable_categorical=True
        )
        return np.asarray(booster.predict(matrix))

    return predict


def _check(booster: xgboost.Booster) -> str:
    """The objective of a booster of trees. Raises UnsupportedError for linear ones, BadModelError without trees."""
    learner = json.loads(booster.save_config())["learner"]
    kind = learner["learner_train_param"]["booster"]
    if kind not in ("gbtree", "dart"):
        raise UnsupportedError(f"the XGBoost booster {kind!r} is not supported", hint="gbtree and dart are")
    if booster.num_boosted_rounds() == 0:
        raise BadModelError("the model has zero trees", hint="train it for at least one round")
    return str(learner["objective"]["name"])


def _is_ubjson(data: bytes) -> bool:
    """In UBJSON a length follows the brace, in JSON a key in quotes."""
    return data[:1] != b"{" or data[1:].lstrip()[:1] not in (b'"', b"", b"}")


def _check_file(data: bytes, path: Path) -> None:
    """A clear error for a file that is cut off, that is no model at all, or whose trees are none."""
    if _is_ubjson(data):
        try:
            content: Any = read_ubjson(data)
        except BadModelError as e:
            raise BadModelError(f"{path} is not a whole XGBoost model: {e.message}") from e
    else:
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as e:
            raise BadModelError(f"{path} is not valid JSON: {e}") from e
    if not isinstance(content, dict) or "learner" not in content:
        raise BadModelError(f"{path} is not an XGBoost model", hint="Booster.save_model writes one")
    try:
        check_xgboost(content)
    except BadModelError as e:
        raise BadModelError(f"{path} is not a sound XGBoost model: {e.message}") from e


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
