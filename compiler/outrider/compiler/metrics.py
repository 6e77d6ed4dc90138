"""Quality: how good a candidate's outputs are, by true labels or by the source model's own outputs.

| metric | is | needs |
| --- | --- | --- |
| `accuracy` (`top1`) | share of rows whose label is right | labels of classes |
| `top2` … `top99` | share of rows whose label is among the so many most probable classes | labels of classes |
| `mae` | mean absolute error of the main output | labels that are numbers of its shape |
| `cosine` | mean cosine similarity to the source model's main output, row by row | nothing |
| `l2` | relative L2 error of the main output against the source model's | nothing |

Any other name is one that the caller's own function gives (`--eval module:function`). It is called with `predict`, the
samples' inputs and their labels, and comes back with a number, or with several by name:

    def evaluate(predict, inputs, labels):
        return {"f1": f1_score(labels, predict(inputs)["label"])}

`predict` takes and gives arrays by name, as `Session.run`, but for many calls of a model that is not batched at once,
along one more axis in front.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.verify import Truth, labels_of
from outrider.runtime.bundle import Signature
from outrider.runtime.calls import Arrays, rows_of_call
from outrider.runtime.errors import BadInputError, OutriderError, UsageError

Relation = Literal["<=", ">="]
Evaluate = Callable[[Callable[[Arrays], Arrays], Arrays, Any], Any]
Predict = Callable[[Arrays], Arrays]

OWN_METRIC = "metric"  # the name of the caller's own where its function gives but a number
RELATIONS: dict[str, Relation] = {"accuracy": ">=", "mae": "<=", "cosine": ">=", "l2": "<="}
_TOP = re.compile(r"top([1-9][0-9]?)")


@dataclass(frozen=True)
class Quality:
    """Values by metric: of a candidate, and of the source model."""

    values: Mapping[str, float] = field(default_factory=dict)
    base: Mapping[str, float] = field(default_factory=dict)


def relation_of(metric: str) -> Relation | None:
    """Which way a built-in metric points; None for one of the caller's own."""
    return ">=" if _TOP.fullmatch(metric) else RELATIONS.get(metric)


def check_metric(metric: str, truth: Truth, signature: Signature, *, own: bool) -> None:
    """Refuse a metric that nothing could be measured against; `own`: the caller has a function. Raises UsageError."""
    if relation_of(metric) is None:
        if not own:
            known = ", ".join((*RELATIONS, "top1", "top5"))
            raise UsageError(f"there is no metric {metric!r}", hint=f"built in are {known}; or give --eval")
        return
    main = next(spec for spec in signature.outputs if spec.name == signature.predict)
    if metric in ("cosine", "l2", "mae") and main.dtype == "string":
        raise UsageError(f"the goal on {metric} needs numbers, and the output {main.name!r} is text")
    if metric in ("cosine", "l2"):
        return
    if truth.targets is None:
        raise UsageError(
            f"the goal on {metric} needs real rows with their labels",
            hint="give calibration with an entry, or column, named label",
        )
    if metric == "mae":
        if truth.targets.dtype.kind not in "fiub":
            raise UsageError("the goal on mae needs labels that are numbers")
    elif truth.labels is None or (labels_of(truth.outputs, signature) is None and _class_count(signature) is None):
        raise UsageError(f"the goal on {metric} needs a classifier")


def measure_quality(
    metrics: frozenset[str], predict: Predict, truth: Truth, signature: Signature, evaluate: Evaluate | None
) -> dict[str, float]:
    """The values of these metrics, on the rows of `truth`.

    Raises BadInputError where the caller's function raises, or gives what is no finite number.
    """
    found: dict[str, float] = {}
    own = {metric for metric in metrics if relation_of(metric) is None}
    if metrics - own:
        outputs = predict(truth.inputs)
        found = {metric: _built_in(metric, outputs, truth, signature) for metric in sorted(metrics - own)}
    if own:
        assert evaluate is not None
        values = _ask(evaluate, predict, truth)
        missing = sorted(own - set(values))
        if missing:
            given = ", ".join(sorted(values))
            raise BadInputError(f"the evaluation gives no {missing[0]!r}", hint=f"it gives {given}")
        found |= {metric: values[metric] for metric in sorted(own)}
    return found


def _built_in(metric: str, outputs: Arrays, truth: Truth, signature: Signature) -> float:
    if metric in ("cosine", "l2"):
        main, source = (_rows(side[signature.predict], signature) for side in (outputs, truth.outputs))
        return _cosine(main, source) if metric == "cosine" else _l2(main, source)
    if metric == "mae":
        assert truth.targets is not None
        return _mae(_rows(outputs[signature.predict], signature), truth.targets)
    assert truth.labels is not None
    top = _TOP.fullmatch(metric)
    return _top(int(top[1]) if top else 1, outputs, truth.labels, signature)


def _l2(main: NDArray[np.float64], source: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(main - source) / max(float(np.linalg.norm(source)), 1e-30))


def _mae(main: NDArray[np.float64], targets: NDArray[Any]) -> float:
    if main.size != targets.size:
        raise UsageError(f"the goal on mae needs labels of the shape {main.shape}, not {targets.shape}")
    return float(np.mean(np.abs(main - targets.reshape(main.shape).astype(np.float64))))


def _top(count: int, outputs: Arrays, labels: NDArray[Any], signature: Signature) -> float:
    """The share of rows whose label is among the `count` most probable classes."""
    predicted = labels_of(outputs, signature)
    if count == 1 and predicted is not None:
        return float(np.mean(predicted == labels))
    scores = _rows(outputs[signature.predict], signature)
    scores = scores.reshape(len(scores), -1)
    if scores.shape[1] == 1:
        scores = np.concatenate([1 - scores, scores], axis=1)
    names = [str(label) for label in signature.class_labels] or [str(i) for i in range(scores.shape[1])]
    best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return float(np.mean((np.array(names)[best] == labels[:, None]).any(axis=1)))


def _class_count(signature: Signature) -> int | None:
    """How many classes the main output has a score for, if its rows, or calls, are scores of classes."""
    spec = next(spec for spec in signature.outputs if spec.name == signature.predict)
    of_row = spec.shape[1:] if signature.batched or rows_of_call(signature) else spec.shape
    wide = [size for size in of_row if size != 1]
    if not of_row or not spec.dtype.startswith("float") or len(wide) > 1 or (wide and wide[0] is None):
        return None
    return wide[0] if wide else 2


def _rows(array: NDArray[Any], signature: Signature) -> NDArray[np.float64]:
    """Rows along axis 0, of a model that takes them in calls, too."""
    rows = array.reshape(-1, *array.shape[2:]) if rows_of_call(signature) else array
    return np.nan_to_num(rows.astype(np.float64))


def _cosine(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    one, other = one.reshape(len(one), -1), other.reshape(len(other), -1)
    sizes = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    same = (one == other).all(axis=1)
    return float(np.mean(np.where(same, 1.0, (one * other).sum(axis=1) / np.where(sizes > 0, sizes, np.inf))))


def _ask(evaluate: Evaluate, predict: Predict, truth: Truth) -> dict[str, float]:
    try:
        given = evaluate(predict, truth.inputs, truth.targets)
        values = given if isinstance(given, Mapping) else {OWN_METRIC: given}
        numbers = {str(name): float(value) for name, value in values.items()}
    except OutriderError:
        raise
    except Exception as e:  # it is the caller's code
        raise BadInputError(f"the evaluation raised {type(e).__name__}: {e}") from e
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise BadInputError(f"the evaluation gives {number} for {name!r}", hint="a finite number is needed")
    return numbers
