"""ONNX files of every kind: what they take and give, and what is said of those that cannot be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from outrider.compiler.frontends import ReadOptions, read_model
from outrider.compiler.frontends.onnx_shapes import find_tensors
from outrider.compiler.model import Model
from outrider.compiler.samples import examples, make_samples
from outrider.compiler.verify import comparable, source_truth
from outrider.runtime.calls import rows_of_call
from outrider.runtime.errors import BadDataError, BadInputError, BadModelError

FLOAT, INT64, BOOL, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING
Shape = Sequence[Any]
Values = Mapping[str, tuple[int, Shape | None]]
node = helper.make_node


def net(
    nodes: Sequence[onnx.NodeProto],
    inputs: Values,
    outputs: Values,
    weights: Mapping[str, np.ndarray] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    made = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [helper.make_tensor_value_info(name, *spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 9
    return model


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def read(model: onnx.ModelProto, calibration: Any = None, **options: Any) -> Model:
    return read_model(model, ReadOptions(examples=examples(calibration), **options))


def seen(model: Model) -> tuple[bool, tuple[Any, ...], tuple[Any, ...]]:
    signature = model.signature
    return signature.batched, *(tuple(spec.shape for spec in side) for side in (signature.inputs, signature.outputs))


def works(model: Model, calibration: Any = None) -> None:
    """Samples can be made, and the source runs on them."""
    samples = comparable(model, make_samples(model, calibration))
    truth = source_truth(model, samples)
    assert truth.rows == samples.rows >= 1
    assert set(truth.outputs) == set(model.computed)


def conv(height: Any, width: Any, batch: Any = "n", *, pooled: bool = True) -> onnx.ModelProto:
    nodes = [node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])]
    nodes += [node("GlobalAveragePool", ["c"], ["g"]), node("Flatten", ["g"], ["y"])] if pooled else []
    outputs: Values = {"y": (FLOAT, [batch, 2])} if pooled else {"c": (FLOAT, [batch, 2, height, width])}
    return net(nodes, {"x": (FLOAT, [batch, 3, height, width])}, outputs, {"w": floats(2, 3, 3, 3)})


def test_image_sizes_that_calibration_shows_stay_free():
    images = floats(5, 3, 8, 10)
    model = read(conv("h", "w"), images)
    assert seen(model) == (True, ((None, 3, None, None),), ((None, 2),))
    assert model.sizes == {"x": (1, 3, 8, 10)}
    works(model, images)
    assert make_samples(model, None).inputs["x"].shape[1:] == (3, 8, 10)
    model = read(conv("h", "w", pooled=False), {"x": images, "label": [0, 1, 0, 1, 0]})
    assert seen(model) == (True, ((None, 3, None, None),), ((None, 2, None, None),))


def test_image_sizes_that_are_bound():
    model = read(conv("h", "w", pooled=False), shapes={"x": (None, 3, 8, 10)})
    assert seen(model) == (True, ((None, 3, 8, 10),), ((None, 2, 8, 10),))
    works(model)
    model = read(conv("h", "w"), shapes={"x": (1, 3, 8, 10)})
    assert seen(model) == (False, ((1, 3, 8, 10),), ((1, 2),))
    assert rows_of_call(model.signature) == 1
    works(model, floats(5, 3, 8, 10))


@pytest.mark.parametrize("calibration", [None, np.float32(3), np.full((2, 3, 8, 8), "a")])
def test_image_sizes_that_nothing_says(calibration):
    with pytest.raises(BadModelError, match=r"axis 2 of the ONNX input 'x' is free.*--shape x=n,3,64,64"):
        read(conv("h", "w"), calibration)


def test_shapes_that_do_not_fit():
    with pytest.raises(BadInputError, match="no input 'z'"):
        read(conv("h", "w"), shapes={"z": (1,)})
    with pytest.raises(BadInputError, match="4 axes"):
        read(conv("h", "w"), shapes={"x": (1, 3)})
    with pytest.raises(BadInputError, match="fixed at 3"):
        read(conv("h", "w"), shapes={"x": (1, 4, 8, 8)})


def lstm(steps: Any, batch: Any, *outputs: str) -> onnx.ModelProto:
    weights = {"w": floats(1, 16, 3), "r": floats(1, 16, 4)}
    shapes = {"y": (FLOAT, [steps, 1, batch, 4]), "h": (FLOAT, [1, batch, 4])}
    made = node("LSTM", ["x", "w", "r"], [name if name in outputs else "" for name in shapes], hidden_size=4)
    return net([made], {"x": (FLOAT, [steps, batch, 3])}, {name: shapes[name] for name in outputs}, weights)


def test_a_sequence_axis_that_comes_first_counts_no_rows():
    steps = floats(7, 2, 3)
    model = read(lstm("t", "n", "y", "h"), steps)
    assert seen(model) == (False, ((None, None, 3),), ((None, 1, None, 4), (1, None, 4)))
    works(model, steps)
    works(model, floats(3, 7, 2, 3))
    assert make_samples(model, floats(3, 7, 2, 3)).rows == 3
    assert read(lstm("t", 1, "y"), floats(1, 1, 3)).signature.batched is False  # one step shows it, too


def test_a_fixed_sequence():
    model = read(lstm(7, 1, "y", "h"))
    assert seen(model) == (False, ((7, 1, 3),), ((7, 1, 1, 4), (1, 1, 4)))
    works(model)
    works(model, floats(5, 7, 1, 3))


def test_recurrent_state_as_inputs_and_outputs():
    weights = {"w": floats(1, 16, 3), "r": floats(1, 16, 4)}
    state: Values = {"h0": (FLOAT, [1, 1, 4]), "c0": (FLOAT, [1, 1, 4])}
    made = node("LSTM", ["x", "w", "r", "", "", "h0", "c0"], ["y", "h1", "c1"], hidden_size=4)
    outputs: Values = {"y": (FLOAT, None), "h1": (FLOAT, None), "c1": (FLOAT, None)}
    model = read(net([made], {"x": (FLOAT, [1, 1, 3]), **state}, outputs, weights))
    assert seen(model)[2] == ((1, 1, 1, 4), (1, 1, 4), (1, 1, 4))
    works(model)


@pytest.mark.parametrize(("batch", "calls"), [(1, 5), (4, 1)])
def test_a_fixed_batch_with_labels(batch, calls):
    model = read(
        net([node("Softmax", ["x"], ["y"])], {"x": (FLOAT, [batch, 3])}, {"y": (FLOAT, [batch, 3])}),
        class_labels=("a", "b", "c"),
    )
    assert seen(model) == (False, ((batch, 3),), ((batch, 3), (batch,)))
    samples = make_samples(model, {"x": floats(5, 3), "label": list("abcab")})
    assert samples.inputs["x"].shape == (calls, batch, 3)
    truth = source_truth(model, samples)
    assert truth.labels is not None
    assert truth.labels.tolist() == list("abcab")[: calls * batch]


def test_labels_need_rows_of_scores():
    mean = net([node("ReduceMean", ["x"], ["y"], keepdims=0)], {"x": (FLOAT, [2, 3])}, {"y": (FLOAT, [])})
    with pytest.raises(BadModelError, match="class labels need a model of rows"):
        read(mean, class_labels=("a", "b"))
    with pytest.raises(BadModelError, match="score for each class in a row"):
        read(conv(8, 8, pooled=False), class_labels=("a", "b"))
    with pytest.raises(BadModelError, match="3 class labels for a model of 2 classes"):
        read(conv(8, 8), class_labels=("a", "b", "c"))
    one = net([node("Sigmoid", ["x"], ["y"])], {"x": (FLOAT, ["n", 1])}, {"y": (FLOAT, ["n", 1])})
    assert read(one, class_labels=("no", "yes")).signature.class_labels == ("no", "yes")


def test_scalars():
    model = read(net([node("Add", ["x", "z"], ["y"])], {"x": (FLOAT, []), "z": (FLOAT, [])}, {"y": (FLOAT, [])}))
    assert seen(model) == (False, ((), ()), ((),))
    works(model)
    works(model, {"x": np.float32([1, 2, 3]), "z": np.float32([1, 2, 3])})
    works(model, {"x": 1.0, "z": 2.0})


def test_several_inputs_and_outputs():
    nodes = [node("MatMul", ["x", "w"], ["y"]), node("Add", ["y", "z"], ["s"]), node("Not", ["b"], ["nb"])]
    inputs: Values = {"x": (FLOAT, ["n", 3]), "z": (FLOAT, ["n", 2]), "b": (BOOL, ["n"])}
    outputs: Values = {"y": (FLOAT, None), "s": (FLOAT, None), "nb": (BOOL, None)}
    model = read(net(nodes, inputs, outputs, {"w": floats(3, 2)}))
    assert seen(model) == (True, ((None, 3), (None, 2), (None,)), ((None, 2), (None, 2), (None,)))
    works(model)
    given = {"x": floats(9, 3), "z": floats(9, 2), "b": np.ones(9, bool)}
    works(model, given)
    short = {**given, "b": np.ones(2, bool)}
    model = read(net(nodes, inputs, outputs, {"w": floats(3, 2)}), short)
    with pytest.raises(BadDataError, match="differ in length"):
        make_samples(model, short)


@pytest.mark.parametrize("calibration", [None, floats(1, 3), floats(2, 3), floats(9, 3)])
@pytest.mark.parametrize("operator", ["Softmax", "CumSum", "ReduceMean"])
def test_rows_that_bear_on_one_another_are_no_rows(operator, calibration):
    axes = np.array([0])
    nodes = {
        "Softmax": node("Softmax", ["x"], ["y"], axis=0),
        "CumSum": node("CumSum", ["x", "axis"], ["y"]),
        "ReduceMean": node("ReduceMean", ["x", "axes"], ["y"]),
    }
    weights = {"CumSum": {"axis": axes[0]}, "ReduceMean": {"axes": axes}}.get(operator, {})
    rows = 1 if operator == "ReduceMean" else "n"
    model = read(net([nodes[operator]], {"x": (FLOAT, ["n", 3])}, {"y": (FLOAT, [rows, 3])}, weights), calibration)
    assert not model.signature.batched
    works(model, calibration)


def test_no_shape_at_all_is_told():
    model = net([node("Relu", ["x"], ["y"])], {"x": (FLOAT, None)}, {"y": (FLOAT, None)})
    bound = read(model, shapes={"x": (None, 3)})
    assert seen(bound)[1:] == (((None, 3),), ((None, 3),))


def branch(name: str, operator: str) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(name, FLOAT, None)
    return helper.make_graph([node(operator, ["x"], [name])], name, [], [value])


def control_flow() -> dict[str, onnx.ModelProto]:
    value, scalar = helper.make_tensor_value_info, [1, 3]
    body = helper.make_graph(
        [node("Add", ["h", "x"], ["h1"]), node("Identity", ["go"], ["go1"])],
        "body",
        [value("i", INT64, []), value("go", BOOL, []), value("h", FLOAT, scalar)],
        [value("go1", BOOL, []), value("h1", FLOAT, scalar)],
    )
    scan = helper.make_graph(
        [node("Add", ["s", "e"], ["s1"]), node("Identity", ["s1"], ["o"])],
        "scan",
        [value("s", FLOAT, [3]), value("e", FLOAT, [3])],
        [value("s1", FLOAT, [3]), value("o", FLOAT, [3])],
    )
    choice = node("If", ["c"], ["y"], then_branch=branch("t", "Relu"), else_branch=branch("e", "Neg"))
    x: Values = {"x": (FLOAT, [1, 3])}
    return {
        "If": net([choice], {"c": (BOOL, []), **x}, {"y": (FLOAT, None)}),
        "Loop": net([node("Loop", ["m", "", "x"], ["y"], body=body)], {"m": (INT64, []), **x}, {"y": (FLOAT, [1, 3])}),
        "Scan": net(
            [node("Scan", ["s0", "x"], ["s", "y"], body=scan, num_scan_inputs=1)],
            {"x": (FLOAT, ["t", 3])},
            {"y": (FLOAT, ["t", 3]), "s": (FLOAT, [3])},
            {"s0": np.zeros(3, np.float32)},
        ),
    }


@pytest.mark.parametrize("name", ["If", "Loop", "Scan"])
def test_control_flow(name):
    model = read(control_flow()[name])
    assert not model.signature.batched
    works(model)
    assert model.signature.outputs[0].shape in ((1, 3), (None, 3), (None, None))


def test_sizes_that_depend_on_data():
    """Boxes that are left over: calls whose results have other sizes cannot be kept side by side."""
    thresholds = {"most": np.array([9]), "iou": np.float32([0.5]), "least": np.float32([0.0])}
    nms = net(
        [node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "least"], ["y"])],
        {"boxes": (FLOAT, [1, 6, 4]), "scores": (FLOAT, [1, 1, 6])},
        {"y": (INT64, [None, 3])},
        thresholds,
    )
    cases: list[tuple[onnx.ModelProto, Any]] = [
        (net([node("NonZero", ["x"], ["y"])], {"x": (FLOAT, ["n", 3])}, {"y": (INT64, None)}), floats(40, 2, 3) > 0),
        (net([node("NonZero", ["x"], ["y"])], {"x": (FLOAT, [2, 3])}, {"y": (INT64, None)}), floats(40, 2, 3) > 0),
        (nms, None),
        (nms, {"boxes": floats(40, 1, 6, 4), "scores": floats(40, 1, 1, 6)}),
    ]
    for made, calibration in cases:
        model = read(made, calibration)
        assert not model.signature.batched
        assert None in model.signature.outputs[0].shape
        works(model, calibration)
    samples = make_samples(model, {**calibration, "label": np.arange(40)})
    kept = comparable(model, samples)
    assert kept.labels is not None
    assert 1 < kept.rows < 40
    assert np.array_equal(kept.inputs["boxes"], calibration["boxes"][kept.labels])


def test_text():
    made = net([node("Identity", ["x"], ["y"])], {"x": (STRING, ["n", 1])}, {"y": (STRING, ["n", 1])})
    model = read(made, np.array([["a"], ["b"]]))
    assert seen(model) == (True, ((None, 1),), ((None, 1),))
    works(model, np.array([["a"], ["b"]]))
    works(model)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (np.full((3, 3), "a"), "holds <U1"),
        (floats(3, 4), r"shape \(3, 4\), expected \(n, 3\)"),
        (floats(3), r"shape \(3,\)"),
        (np.float32(1), r"shape \(\)"),
        (floats(0, 3), "no rows"),
        ([[1.0], [1.0, 2.0]], "is no array"),
        ({"x": [[1.0], [1.0, 2.0]]}, "for 'x' is no array"),
        ({"z": floats(3, 3)}, "'z', which is no input"),
    ],
)
@pytest.mark.parametrize("batch", ["n", 1])
def test_calibration_that_does_not_fit(batch, calibration, message):
    made = net([node("Relu", ["x"], ["y"])], {"x": (FLOAT, [batch, 3])}, {"y": (FLOAT, [batch, 3])})
    if batch == 1 and "n, 3" in message:
        message = r"shape \(3, 4\), expected"
    if batch == 1 and message == "no rows":
        message = "has 0 rows"
    with pytest.raises(BadDataError, match=message):
        make_samples(read(made, calibration), calibration)


def test_the_tensors_are_found_by_running():
    """What the file says of outputs is not relied on."""
    made = net([node("Flatten", ["x"], ["y"])], {"x": (FLOAT, ["n", 2, 3])}, {"y": (FLOAT, ["n", 7])})
    found = find_tensors(made.graph, {"y": ["n", 6]}, lambda inputs: {"y": inputs["x"].reshape(-1, 6)}, {})
    assert [spec.shape for spec in found.outputs] == [(None, 6)]
