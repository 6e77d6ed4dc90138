"""A model on its way to an artifact: its signature, its payload, and the source library as the reference."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.trees.check import check_forest
from outrider.compiler.trees.forest import Forest
from outrider.runtime.bundle.manifest import Dtype, Signature, TensorSpec
from outrider.runtime.errors import BadModelError, UnsupportedError

Array = NDArray[Any]
Reference = Callable[[Mapping[str, Array]], dict[str, Array]]
Label = int | str
Precision = Literal["float32", "float64"]

FEATURES, SCORE, PROBABILITIES, LABEL = "features", "score", "probabilities", "label"


def no_reference(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Stands for the source library where a model is in a process that has no need of it."""
    raise AssertionError(f"the source library is not asked here, for {', '.join(inputs)}")


@dataclass(frozen=True)
class OnnxGraph:
    """An ONNX file as bytes. `no_forest` says in words why the graph is not read as a Forest."""

    data: bytes
    no_forest: str

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Model:
    """A trained model.

    `reference` runs the source library itself: inputs as in the signature -> the outputs an artifact computes. Of a
    forest it takes float64 rows too, and treats them as the source library does.
    `computed` are the outputs that an artifact gives: all but a `label` that the session derives. `sha256` is of the
    serialised source. `accepts_nan` and `accepts_inf`: whether the source library takes such rows. `decides_in`: the
    type in which the source library compares features. Where it is float32, float64 rows are rounded first; where it
    is float64, they may fall between two float32 values, and `Tree.threshold` decides on them. `sizes`: the shape of a
    call that is known to work, by the names of inputs of which the signature leaves more free than rows.
    """

    framework: str
    framework_version: str
    description: str
    sha256: str
    signature: Signature
    payload: Forest | OnnxGraph
    reference: Reference
    computed: tuple[str, ...]
    accepts_nan: bool = True
    accepts_inf: bool = True
    decides_in: Precision = "float32"
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def forest_model(
    forest: Forest,
    predict: Callable[[Array], Array],
    *,
    framework: str,
    framework_version: str,
    description: str,
    sha256: str,
    probabilities: bool,
    decides_in: Precision = "float32",
    class_labels: Sequence[Label] = (),
    classes: Sequence[int] = (),
    names: Sequence[str] = (),
) -> Model:
    """The model of a forest. `predict` is the source library's own, float32 or float64 [n, features] -> [n] or [n, k].

    `probabilities`: a matrix output holds class probabilities. `class_labels` give an output `label`; they must be
    as many as the classes. `classes`: of a classifier of several targets, how many each has; the matrix holds their
    probabilities side by side, and each target has an output of its own beside it.
    Raises BadModelError for a forest that is none, and where `names` of features or labels do not fit the model.
    """
    check_forest(forest)

    def reference_rows(rows: Array) -> Array:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(predict(rows))

    shape = reference_rows(np.zeros((2, forest.features), np.float32)).shape[1:]
    name = PROBABILITIES if probabilities and shape else SCORE

    def reference(inputs: Mapping[str, Array]) -> dict[str, Array]:
        rows = inputs[FEATURES]
        result = reference_rows(rows) if len(rows) else np.zeros((0, *shape))
        return {name: result.astype(np.float32)}

    if shape not in ((), (forest.columns_out,)) or (shape == () and forest.columns_out != 1):
        raise UnsupportedError(
            f"the model predicts arrays of shape {('n', *shape)}, its trees give {forest.columns_out} values a row"
        )
    targets = tuple(
        TensorSpec(name=f"{name}_{i}", dtype="float32", shape=(None, count)) for i, count in enumerate(classes)
    )
    signature = Signature(
        inputs=(TensorSpec(name=FEATURES, dtype="float32", shape=(None, forest.features)),),
        outputs=(TensorSpec(name=name, dtype="float32", shape=(None, *shape)), *targets, *label_output(class_labels)),
        predict=name,
        feature_names=_check_names(tuple(names), forest.features),
        class_labels=check_labels(tuple(class_labels), shape[0] if shape else 2),
    )
    return Model(
        framework=framework,
        framework_version=framework_version,
        description=description,
        sha256=sha256,
        signature=signature,
        payload=forest,
        reference=reference,
        computed=(name,),
        accepts_nan=_accepts(reference_rows, forest.features, np.nan),
        accepts_inf=_accepts(reference_rows, forest.features, np.inf),
        decides_in=decides_in,
    )


def plain_labels(classes: Any) -> tuple[Label, ...]:
    """Class labels of a framework as int or str. Raises UnsupportedError for labels of another kind."""
    labels: list[Label] = []
    for value in np.asarray(classes).tolist():
        if isinstance(value, str):
            labels.append(value)
        elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            labels.append(int(value))
        else:
            raise UnsupportedError(
                f"the class label {value!r} is not supported", hint="integers and text are; encode the labels"
            )
    return tuple(labels)


def feature_names(given: Sequence[str], own: Sequence[str] | None) -> tuple[str, ...]:
    """The names that were given with a model, or else its own. Raises BadModelError where they contradict."""
    if given and own and tuple(given) != tuple(own):
        differing = next((pair for pair in zip(given, own, strict=False) if pair[0] != pair[1]), (len(given), len(own)))
        raise BadModelError(
            f"the feature names given are not the model's own, in its order: {differing[0]!r} is {differing[1]!r} there"
        )
    return tuple(given) or tuple(own or ())


def label_output(labels: Sequence[Label]) -> tuple[TensorSpec, ...]:
    """The spec of the derived output `label`; nothing where there are no class labels."""
    if not labels:
        return ()
    dtype: Dtype = "string" if any(isinstance(label, str) for label in labels) else "int64"
    return (TensorSpec(name=LABEL, dtype=dtype, shape=(None,)),)


def _check_names(names: tuple[str, ...], features: int) -> tuple[str, ...]:
    if names and len(names) != features:
        raise BadModelError(f"there are {len(names)} feature names for a model of {features} features")
    if len(set(names)) != len(names):
        raise BadModelError("two features of the model have the same name")
    return names


def check_labels(labels: tuple[Label, ...], classes: int) -> tuple[Label, ...]:
    """The labels. Raises BadModelError where they are not as many as the classes."""
    if labels and len(labels) != classes:
        raise BadModelError(f"there are {len(labels)} class labels for a model of {classes} classes")
    return labels


def _accepts(predict: Callable[[Array], Array], features: int, value: float) -> bool:
    """Whether the source library predicts on rows that hold `value`, found out by asking it."""
    try:
        predict(np.full((1, features), value, np.float32))
    except Exception:  # every library refuses with an exception of its own
        return False
    return True
