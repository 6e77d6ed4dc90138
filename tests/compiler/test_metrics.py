"""Quality: built-in metrics against their definitions, and functions of the caller's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from outrider.compiler.metrics import Evaluate, check_metric, measure_quality, relation_of
from outrider.compiler.verify import Truth, true_labels
from outrider.runtime.bundle.manifest import Dtype, Signature, TensorSpec
from outrider.runtime.errors import BadInputError, UnsupportedError, UsageError

SCORES = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.45, 0.45], [0.25, 0.35, 0.4]], np.float32)


def signature(
    *shape: int | None, labels: Sequence[int | str] = (), batched: bool = True, dtype: Dtype = "float32"
) -> Signature:
    rows = shape[0] if shape else None
    return Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(rows, 2)),),
        outputs=(TensorSpec(name="y", dtype=dtype, shape=shape),),
        predict="y",
        class_labels=tuple(labels),
        batched=batched,
    )


def truth(outputs: Any, targets: Any, of: Signature) -> Truth:
    outputs, targets = np.asarray(outputs), None if targets is None else np.asarray(targets)
    labels = true_labels(targets, of) if targets is not None and targets.ndim == 1 else None
    inputs = {"x": np.zeros((len(outputs), 2), np.float32)}
    return Truth(inputs, {"y": outputs}, len(outputs), labels, targets)


def value(
    metric: str, found: Any, of: Signature, *, source: Any = None, targets: Any = None, evaluate: Evaluate | None = None
) -> float:
    known = truth(found if source is None else source, targets, of)
    check_metric(metric, known, of, own=evaluate is not None)
    return measure_quality(frozenset((metric,)), lambda _: {"y": np.asarray(found)}, known, of, evaluate)[metric]


@pytest.mark.parametrize(
    ("metric", "share"), [("accuracy", 0.5), ("top1", 0.5), ("top2", 0.75), ("top3", 1.0), ("top99", 1.0)]
)
@pytest.mark.parametrize("labels", [(), ("a", "b", "c"), (7, 8, 9)])
def test_top_classes(metric, share, labels):
    places = [0, 2, 1, 0]
    targets = [labels[place] for place in places] if labels else places
    assert value(metric, SCORES, signature(None, 3, labels=labels), targets=targets) == share


def test_a_single_score_is_of_the_second_class():
    scores = np.array([0.9, 0.2, 0.7, 0.5], np.float32)
    for shape, labels in (((None,), ("no", "yes")), ((None, 1), ("no", "yes")), ((None, 1), ())):
        of = signature(*shape, labels=labels)
        found = scores.reshape(-1, *shape[1:])
        assert value("accuracy", found, of, targets=[1, 0, 0, 0]) == 0.75
        assert value("top2", found, of, targets=[1, 0, 0, 0]) == 1.0


def test_calls_of_a_fixed_batch_and_of_no_batch():
    pairs = SCORES.reshape(2, 2, 3)  # two calls of two rows
    assert value("accuracy", pairs, signature(2, 3, batched=False), targets=[0, 2, 1, 0]) == 0.5
    for shape in ((3,), (1, 3)):
        of = Signature(
            inputs=(TensorSpec(name="x", dtype="float32", shape=(5, 2)),),
            outputs=(TensorSpec(name="y", dtype="float32", shape=shape),),
            predict="y",
            batched=False,
        )
        for metric, share in (("accuracy", 0.5), ("top2", 0.75)):
            assert value(metric, SCORES.reshape(-1, *shape), of, targets=[0, 2, 1, 0]) == share


def test_distances():
    of = signature(None, 2)
    source, found = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]]), np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]])
    assert value("cosine", found, of, source=source) == pytest.approx(2 / 3)
    assert value("cosine", -source, of, source=source) == pytest.approx((-1 + 1 - 1) / 3)
    assert value("l2", found, of, source=source) == pytest.approx(math.sqrt(5 / 26))
    assert value("l2", source, of, source=source) == 0.0
    assert value("l2", source + 1, of, source=source * 0) > 1e20
    assert value("mae", found, of, targets=source) == pytest.approx(0.5)
    assert value("mae", [1.0, 2.0], signature(None), targets=[1, 4]) == 1.0
    assert value("mae", [[1.0], [2.0]], signature(None, 1), targets=[1, 4]) == 1.0
    assert value("cosine", [1, 2], signature(None, dtype="int64"), source=[1, 2]) == 1.0


def test_nothing_to_compare_is_no_crash_and_no_success():
    of = signature(None, 2)
    source = np.array([[3.0, 4.0]])
    assert value("l2", np.full((1, 2), np.nan), of, source=source) >= 1
    assert value("cosine", np.full((1, 2), np.nan), of, source=source) == 0


@pytest.mark.parametrize(
    ("metric", "of", "targets", "message"),
    [
        ("accuracy", signature(None, 3), None, "needs real rows with their labels"),
        ("mae", signature(None, 3), None, "needs real rows with their labels"),
        ("accuracy", signature(None), [1, 2, 0, 1], "needs a classifier"),
        ("top2", signature(None, 3, 4), [1, 2, 0, 1], "needs a classifier"),
        ("accuracy", signature(None, 3), SCORES, "needs a classifier"),
        ("mae", signature(None, 3), ["a", "b", "a", "b"], "numbers"),
        ("l2", signature(None, dtype="string"), None, "is text"),
        ("cosine", signature(None, dtype="string"), None, "is text"),
        ("speed", signature(None), None, "no metric 'speed'"),
    ],
)
def test_metrics_that_nothing_could_be_measured_against(metric, of, targets, message):
    with pytest.raises(UsageError, match=message):
        check_metric(metric, truth(SCORES, targets, of), of, own=False)


def test_mean_errors_need_labels_of_the_outputs_shape():
    with pytest.raises(UsageError, match=r"labels of the shape \(4, 3\), not \(4,\)"):
        value("mae", SCORES, signature(None, 3), targets=[1.0, 2.0, 3.0, 4.0])


def test_the_callers_own_function():
    of = signature(None, 3)

    def judge(predict: Any, inputs: Any, labels: Any) -> dict[str, float]:
        found = predict(inputs)["y"]
        return {"best": found.max(), "labels": np.int64(len(labels))}

    for metric, wanted in (("best", 0.6), ("labels", 4.0)):
        assert value(metric, SCORES, of, targets=[0, 0, 0, 0], evaluate=judge) == pytest.approx(wanted)
    assert value("metric", SCORES, of, evaluate=lambda *_: 0.25) == 0.25
    mixed = truth(SCORES, [0, 1, 2, 2], of)
    found = measure_quality(frozenset(("best", "top1")), lambda _: mixed.outputs, mixed, of, judge)
    assert found == pytest.approx({"best": 0.6, "top1": 0.75})
    assert measure_quality(frozenset(), lambda _: {}, mixed, of, judge) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"f1": 1.0, "other": 2.0}, "no 'best' .*it gives f1, other"),
        ({}, "no 'best'"),
        (0.5, "no 'best' .*it gives metric"),
        ({"best": math.nan}, "gives nan for 'best'"),
        ({"best": 1.0, "f1": math.inf}, "gives inf for 'f1'"),
        ({"best": "high"}, "raised ValueError"),
        (None, "raised TypeError"),
        ({"best": np.zeros(3)}, "raised TypeError"),
    ],
)
def test_what_the_callers_function_must_not_give(given, message):
    with pytest.raises(BadInputError, match=message):
        value("best", SCORES, signature(None, 3), evaluate=lambda *_: given)


def test_a_function_that_raises():
    def broken(*_: Any) -> float:
        raise ZeroDivisionError("division by zero")

    def refusing(*_: Any) -> float:
        raise UnsupportedError("not for this")

    def interrupted(*_: Any) -> float:
        raise KeyboardInterrupt

    of = signature(None, 3)
    with pytest.raises(BadInputError, match="raised ZeroDivisionError: division by zero"):
        value("best", SCORES, of, evaluate=broken)
    with pytest.raises(UnsupportedError):
        value("best", SCORES, of, evaluate=refusing)
    with pytest.raises(KeyboardInterrupt):
        value("best", SCORES, of, evaluate=interrupted)


def test_which_way_they_point():
    wanted = {"accuracy": ">=", "top1": ">=", "top99": ">=", "mae": "<=", "cosine": ">=", "l2": "<="}
    assert {metric: relation_of(metric) for metric in wanted} == wanted
    for own in ("top", "top0", "top100", "f1", ""):
        assert relation_of(own) is None
