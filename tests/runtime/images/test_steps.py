"""Outputs -> classes and boxes: decoders on tensors made by hand, suppression against a slow one."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider.runtime.errors import BadDataError
from outrider.runtime.images import (
    DECODERS,
    STEPS,
    AnchorFree,
    Boxes,
    Decoded,
    ImagePlan,
    ImageResult,
    Softmax,
    Ssd,
    TopK,
    Yolo,
    pack_priors,
    postprocess,
)
from outrider.runtime.images.nms import suppress
from outrider.runtime.images.placement import place
from outrider.runtime.images.plan import Decode, Postprocess, kind_of

Array = np.ndarray
WHOLE = place(ImagePlan(input="x", size=(100, 200)), 100, 200)  # the image is the input
HALF = place(ImagePlan(input="x", size=(100, 200)), 50, 100)
NONE: dict[str, Any] = {"score_threshold": 0.5, "iou_threshold": None}


def run(step: Any, placement: Any = WHOLE, labels: tuple[str, ...] = (), **outputs: Any) -> ImageResult:
    return postprocess(
        (step,), {name: np.asarray(value, np.float32) for name, value in outputs.items()}, placement, labels
    )


def found(step: Any, placement: Any = WHOLE, **outputs: Any) -> list[tuple[list[float], float, int]]:
    detections = run(step, placement, **outputs).detections
    assert detections is not None
    return [
        (
            [round(d.box.x1, 3), round(d.box.y1, 3), round(d.box.x2, 3), round(d.box.y2, 3)],
            round(d.score, 4),
            d.class_id,
        )
        for d in detections
    ]


def test_the_tables_know_every_record() -> None:
    assert set(STEPS) == {kind_of_type(step) for step in get_args(Postprocess)}
    assert set(DECODERS) == {kind_of_type(kind) for kind in get_args(Decode)}
    assert kind_of(TopK(output="y")) == "top_k"


def kind_of_type(record: Any) -> str:
    return str(record.__struct_config__.tag)


def test_softmax() -> None:
    changed = run(Softmax(output="y"), y=[1.0, 2.0, 1000.0], z=[3.0])
    assert changed.outputs["y"].dtype == np.float32
    assert changed.outputs["y"].tolist() == [0, 0, 1]
    assert changed.outputs["z"].tolist() == [3]
    values = np.array([0.1, -2, 3], np.float32)
    np.testing.assert_allclose(run(Softmax(output="y"), y=values).outputs["y"], np.exp(values) / np.exp(values).sum())


def test_top_k() -> None:
    step = TopK(output="y", k=2, labels=("cat", "dog", "cow"))
    classes = run(step, labels=("a", "b", "c"), y=[[0.25, 0.5, 0.5]]).classes
    assert classes is not None
    assert [(one.label, one.class_id, one.score) for one in classes] == [("dog", 1, 0.5), ("cow", 2, 0.5)]
    unnamed = run(TopK(output="y", k=9), y=[1, 3]).classes
    assert unnamed is not None
    assert [one.label for one in unnamed] == [1, 0]
    named = run(TopK(output="y", k=1), labels=("a", "b"), y=[np.nan, 3]).classes
    assert named is not None
    assert [one.label for one in named] == ["b"]


def test_yolo_rows() -> None:
    rows = [[50, 40, 20, 10, 0.9, 0.1, 0.8], [10, 10, 4, 4, 0.4, 0.9, 0.9], [60, 60, 20, 20, 1.0, 0.6, 0.2]]
    step = Boxes(decode=Yolo(output="y"), **NONE)
    assert found(step, y=rows) == [([40, 35, 60, 45], 0.72, 1), ([50, 50, 70, 70], 0.6, 0)]
    assert found(step, HALF, y=rows)[0][0] == [20, 17.5, 30, 22.5]
    only = Boxes(decode=Yolo(output="y", units="fraction", activation="sigmoid"), **NONE)
    assert found(only, y=[[0.5, 0.5, 0.2, 0.2, 0.0], [0.5, 0.5, 0.2, 0.2, -9]]) == [([80, 40, 120, 60], 0.5, 0)]


def test_anchor_free_columns() -> None:
    columns = np.array([[50, 40, 20, 10, 0.1, 0.8], [60, 60, 20, 20, 0.3, 0.2]]).T
    expected = [([40, 35, 60, 45], 0.8, 1)]
    assert found(Boxes(decode=AnchorFree(output="y"), **NONE), y=columns) == expected
    assert found(Boxes(decode=AnchorFree(output="y", anchors_last=False), **NONE), y=columns.T) == expected
    corners = Boxes(decode=AnchorFree(output="y", form="xyxy"), **NONE)
    assert found(corners, y=np.array([[40, 35, 60, 45, 0.1, 0.8]]).T) == expected
    logits = Boxes(decode=AnchorFree(output="y", activation="sigmoid"), **NONE)
    assert found(logits, y=np.array([[50, 40, 20, 10, -3, 0.0]]).T) == [([40, 35, 60, 45], 0.5, 1)]


def test_ssd_offsets() -> None:
    priors = pack_priors(np.array([[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]]))
    step = Boxes(decode=Ssd(locations="l", scores="s", priors=priors, activation="none"), **NONE)
    locations = [[1.0, -0.5, np.log(2) / 0.2, 0], [0, 0, 0, 0]]
    # centre (0.52, 0.48), sides (0.4, 0.4), of 200 x 100 pixels
    assert found(step, l=locations, s=[[0.1, 0.2, 0.7], [0.8, 0.1, 0.1]]) == [([64, 28, 144, 68], 0.7, 1)]
    soft = Boxes(decode=Ssd(locations="l", scores="s", priors=priors, background=None), **NONE)
    assert [one[1:] for one in found(soft, l=locations, s=[[0, np.log(3)], [9, -90]])] == [(1.0, 0), (0.75, 1)]
    with pytest.raises(BadDataError, match="priors"):
        pack_priors(np.zeros((3, 5)))


def test_decoded_boxes() -> None:
    expected = [([1, 2, 30, 40], 0.9, 4)]
    one = Boxes(decode=Decoded(outputs=("y",)), **NONE)
    assert found(one, y=[[1, 2, 30, 40, 0.9, 4], [1, 2, 3, 4, 0.2, 1]]) == expected
    three = Boxes(decode=Decoded(outputs=("b", "s", "c"), units="fraction", order="yxyx"), **NONE)
    assert found(three, b=[[0.02, 0.005, 0.4, 0.15], [0, 0, 0, 0]], s=[0.9, 0], c=[4, 0]) == expected
    every = Boxes(decode=Decoded(outputs=("y",)), score_threshold=0.0)
    assert found(every, y=np.zeros((3, 6))) == []
    assert found(one, y=np.zeros((0, 6))) == []


def test_what_is_not_finite_or_has_no_area_is_left_out() -> None:
    rows = [[0, 0, np.inf, 9, 0.9, 0], [0, 0, np.nan, 9, 0.9, 0], [5, 5, 5, 9, 0.9, 0], [0, 0, 9, 9, np.nan, 0]]
    rows += [[300, 300, 400, 400, 0.9, 0], [0, 0, 3e38, 3e38, 0.6, 0]]
    step = Boxes(decode=Decoded(outputs=("y",)), score_threshold=0.5)
    assert found(step, y=rows) == [([0, 0, 200, 100], 0.6, 0)]


def test_suppression_by_class_and_its_limits() -> None:
    rows = [[0, 0, 10, 10, 0.9, 0], [1, 0, 11, 10, 0.8, 0], [1, 0, 11, 10, 0.7, 1], [50, 50, 60, 60, 0.6, 0]]
    step = Boxes(decode=Decoded(outputs=("y",)), labels=("a",))
    assert [one[1] for one in found(step, y=rows)] == [0.9, 0.7, 0.6]
    assert [one[1] for one in found(msgspec.structs.replace(step, class_aware=False), y=rows)] == [0.9, 0.6]
    assert [one[1] for one in found(msgspec.structs.replace(step, max_detections=2), y=rows)] == [0.9, 0.7]
    assert [one[1] for one in found(msgspec.structs.replace(step, max_candidates=2), y=rows)] == [0.9]
    assert [one[1] for one in found(msgspec.structs.replace(step, iou_threshold=None), y=rows)] == [0.9, 0.8, 0.7, 0.6]
    assert [d.label for d in run(step, y=rows).detections or ()] == ["a", 1, "a"]


def test_outputs_that_do_not_fit() -> None:
    with pytest.raises(BadDataError, match=r"'top_k' does not fit the outputs: z \(1,\)"):
        run(TopK(output="y"), z=[1])
    with pytest.raises(BadDataError, match="'boxes'"):
        run(Boxes(decode=Yolo(output="y")), y=[1, 2])


def slow(boxes: Array, scores: Array, classes: Array | None, threshold: float, most: int) -> list[int]:
    """Each box against every one that stays, one by one."""

    def area(box: Array) -> float:
        return float(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))

    def overlap(a: Array, b: Array) -> float:
        shared = area(np.array([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])]))
        union = area(a) + area(b) - shared
        return shared / union if union > 0 else 0.0

    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        rivals = [k for k in kept if classes is None or classes[k] == classes[i]]
        if all(overlap(boxes[k], boxes[i]) <= threshold for k in rivals):
            kept.append(i)
    return kept[:most]


corner = st.integers(0, 12)
rows = st.tuples(corner, corner, corner, corner, st.integers(0, 4), st.integers(0, 2))


@settings(max_examples=200)
@given(
    rows=st.lists(rows, max_size=25),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    aware=st.booleans(),
    most=st.integers(1, 30),
)
def test_suppression_is_that_of_a_slow_one(rows: list[Any], threshold: float, aware: bool, most: int) -> None:
    table = np.array(rows, np.float64).reshape(-1, 6)
    boxes, scores = table[:, :4], table[:, 4] / 4
    classes = table[:, 5].astype(np.int64) if aware else None
    order = np.argsort(-scores, kind="stable")
    kept = order[suppress(boxes[order], None if classes is None else classes[order], threshold, most)]
    assert kept.tolist() == slow(boxes, scores, classes, threshold, most)
