"""What simplification, folding, and the rewrites of Clip and BatchNormalization make of single patterns."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from outrider.compiler.passes.batchnorm import batchnorm
from outrider.compiler.passes.clip import clip
from outrider.compiler.passes.fold import fold
from outrider.compiler.passes.shapes import bind
from outrider.compiler.passes.simplify import simplify

RNG = np.random.default_rng(3)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


# Simplification ------------------------------------------------------------------------------------------------------


def test_the_same_is_computed_once(graphs):
    nodes = [
        graphs.node("Mul", ["x", "a"], "p"),
        graphs.node("Mul", ["x", "b"], "q"),
        graphs.node("LeakyRelu", ["p"], "r", alpha=0.1),
        graphs.node("LeakyRelu", ["q"], "s", alpha=0.1),
        graphs.node("LeakyRelu", ["q"], "t", alpha=0.2),
        graphs.node("Sum", ["r", "s", "t"], "y"),
    ]
    made = graphs.model(
        nodes, {"x": [3]}, {"y": [3], "s": [3]}, {"a": np.float32([1, 2, 3]), "b": np.float32([1, 2, 3])}
    )
    after = simplify(made)
    assert graphs.kinds(after) == ["Mul", "LeakyRelu", "LeakyRelu", "LeakyRelu", "Sum"]  # an output keeps its node
    assert list(graphs.constants(after)) == ["a"]
    graphs.assert_same(made, after, {"x": floats(3)})


def test_random_numbers_are_not_shared(graphs):
    nodes = [graphs.node("RandomNormalLike", ["x"], "a"), graphs.node("RandomNormalLike", ["x"], "b")]
    made = graphs.model([*nodes, graphs.node("Sub", ["a", "b"], "y")], {"x": [3]}, {"y": [3]})
    assert len(simplify(made).graph.node) == 3


def test_outputs_keep_their_names(graphs):
    nodes = [
        graphs.node("Relu", ["x"], "r"),
        graphs.node("Identity", ["r"], "y"),
        graphs.node("Identity", ["r"], "z"),
        graphs.node("Identity", ["x"], "same"),
        graphs.node("Neg", ["r"], "n"),
    ]
    made = graphs.model(nodes, {"x": [3]}, {"y": [3], "z": [3], "same": [3], "n": [3]})
    after = simplify(made)
    graphs.assert_same(made, after, {"x": floats(3)})
    assert sorted(graphs.kinds(after)) == ["Identity", "Identity", "Neg", "Relu"]


@pytest.mark.parametrize("training", [False, True, None])
def test_dropout_goes_unless_it_may_be_training(graphs: ModuleType, training: bool | None) -> None:
    constants = {"ratio": np.float32(0.5)} | ({} if training is None else {"mode": np.array(training)})
    inputs: dict[str, Any] = {"x": [3]} | ({"mode": ([], graphs.BOOL)} if training is None else {})
    nodes = [graphs.node("Dropout", ["x", "ratio", "mode"], "d"), graphs.node("Neg", ["d"], "y")]
    after = simplify(graphs.model(nodes, inputs, {"y": [3]}, constants))
    assert ("Dropout" in graphs.kinds(after)) == (training is not False)


def test_a_mask_that_is_read_keeps_its_dropout(graphs):
    nodes = [graphs.node("Dropout", ["x"], ["d", "mask"]), graphs.node("Neg", ["d"], "y")]
    made = graphs.model(nodes, {"x": [3]}, {"y": [3], "mask": ([3], graphs.BOOL)})
    assert graphs.kinds(simplify(made)) == ["Dropout", "Neg"]


@pytest.mark.parametrize("step", [1, -1])
def test_a_slice_of_everything_goes_unless_it_turns_around(graphs: ModuleType, step: int) -> None:
    first, last = (0, 3) if step > 0 else (-1, -9)
    constants = {"a": np.array([first]), "b": np.array([last]), "c": np.array([0]), "d": np.array([step])}
    nodes = [graphs.node("Slice", ["x", "a", "b", "c", "d"], "s"), graphs.node("Neg", ["s"], "y")]
    made = bind(graphs.model(nodes, {"x": [3]}, {"y": [3]}, constants), {})
    after = simplify(made)
    assert graphs.kinds(after) == (["Neg"] if step > 0 else ["Slice", "Neg"])
    graphs.assert_same(made, after, {"x": floats(3)})


# Folding -------------------------------------------------------------------------------------------------------------


def test_constants_and_fixed_sizes_are_computed_ahead(graphs):
    nodes = [
        graphs.node("Constant", [], "c", value_float=2.0),
        graphs.node("Add", ["c", "w"], "sum"),
        graphs.node("Transpose", ["sum"], "turned", perm=[1, 0]),
        graphs.node("MatMul", ["x", "turned"], "m"),
        graphs.node("Shape", ["m"], "shape"),
        graphs.node("Gather", ["shape", "one"], "width"),
        graphs.node("Cast", ["width"], "divisor", to=graphs.FLOAT),
        graphs.node("Div", ["m", "divisor"], "y"),
    ]
    made = graphs.model(nodes, {"x": ["n", 4]}, {"y": ["n", 3]}, {"w": floats(3, 4), "one": np.array(1)})
    assert "Shape" in graphs.kinds(fold(made))  # the batch is free
    after = fold(bind(made, {"x": (2, 4)}))
    assert graphs.kinds(after) == ["MatMul", "Div"]
    assert sorted(value.shape for value in graphs.constants(after).values()) == [(), (4, 3)]
    graphs.assert_same(bind(made, {"x": (2, 4)}), after, {"x": floats(2, 4)})


def test_a_slice_of_sizes_needs_only_its_own(graphs):
    nodes = [graphs.node("Shape", ["x"], "s", start=1), graphs.node("Expand", ["one", "s"], "y")]
    made = graphs.model(nodes, {"x": ["n", 4, 2]}, {"y": [4, 2]}, {"one": np.float32(1)})
    after = fold(made)
    assert graphs.kinds(after) == ["Constant"]
    graphs.assert_same(made, after, {"x": floats(1, 4, 2)})


def test_what_would_blow_up_the_file_stays(graphs):
    nodes = [
        graphs.node("ConstantOfShape", ["huge"], "zeros"),
        graphs.node("ConstantOfShape", ["small"], "few"),
        graphs.node("Add", ["x", "few"], "a"),
        graphs.node("ReduceSum", ["zeros"], "total", keepdims=0),
        graphs.node("Add", ["a", "total"], "y"),
    ]
    constants = {"huge": np.array([1 << 40]), "small": np.array([3])}
    after = fold(graphs.model(nodes, {"x": [3]}, {"y": [3]}, constants))
    assert graphs.kinds(after) == ["ConstantOfShape", "Add", "ReduceSum", "Add"]
    nodes[0] = graphs.node("Expand", ["tile", "wide"], "zeros")
    constants = {"tile": floats(1, 500), "wide": np.array([100, 500]), "small": np.array([3])}
    made = graphs.model(nodes, {"x": [3]}, {"y": [3]}, constants)
    assert "Expand" in graphs.kinds(fold(made, growth=100_000))
    assert graphs.kinds(fold(made)) == ["Add", "Add"]


def test_weights_are_turned_in_place_of_the_old_ones_whatever_the_limit(graphs):
    nodes = [graphs.node("Transpose", ["w"], "t", perm=[1, 0]), graphs.node("MatMul", ["x", "t"], "y")]
    made = graphs.model(nodes, {"x": [1, 50]}, {"y": [1, 40]}, {"w": floats(40, 50)})
    assert graphs.kinds(fold(made, growth=64)) == ["MatMul"]
    made.graph.node.append(graphs.node("MatMul", ["y", "w"], "z"))  # here both are needed
    made.graph.output.append(graphs.value("z", [1, 50]))
    assert graphs.kinds(fold(made, growth=64)) == ["Transpose", "MatMul", "MatMul"]


def test_random_and_quantised_weights_are_not_folded(graphs):
    nodes = [
        graphs.node("RandomNormal", [], "r", shape=[3]),
        graphs.node("DequantizeLinear", ["w", "scale"], "d"),
        graphs.node("Sum", ["x", "r", "d"], "y"),
    ]
    constants = {"w": np.array([1, 2, 3], np.int8), "scale": np.float32(0.5)}
    made = graphs.model(nodes, {"x": [3]}, {"y": [3]}, constants)
    assert graphs.kinds(fold(made)) == ["RandomNormal", "DequantizeLinear", "Sum"]


def test_what_cannot_be_computed_stays(graphs):
    nodes = [graphs.node("Reshape", ["w", "wrong"], "r"), graphs.node("Add", ["x", "r"], "y")]
    made = graphs.model(nodes, {"x": [3]}, {"y": [3]}, {"w": floats(3), "wrong": np.array([2, 2])})
    assert graphs.kinds(fold(made)) == ["Reshape", "Add"]


# Clip ----------------------------------------------------------------------------------------------------------------


def bounded(graphs: ModuleType, version: int, *steps: tuple[str, Any, Any]) -> onnx.ModelProto:
    """Clip, Relu, Max and Min one after another on x."""
    nodes, constants, at = [], {}, "x"
    for i, (kind, low, high) in enumerate(steps):
        bounds = {f"low{i}": low, f"high{i}": high}
        given = {name: np.float32(number) for name, number in bounds.items() if number is not None}
        if kind == "Clip" and version < 11:
            named = {
                name.rstrip("0123456789").replace("low", "min").replace("high", "max"): v for name, v in given.items()
            }
            nodes.append(graphs.node("Clip", [at], f"v{i}", **{name: float(v) for name, v in named.items()}))
        else:
            constants |= given
            names = [name if name in given else "" for name in bounds] if kind == "Clip" else [*given]
            nodes.append(graphs.node(kind, [at, *names] if kind != "Max" else [*names, at], f"v{i}"))
        at = f"v{i}"
    nodes.append(graphs.node("Neg", [at], "y"))
    return graphs.model(nodes, {"x": ["n", 5]}, {"y": ["n", 5]}, constants, opset=version)


@pytest.mark.parametrize("version", [7, 10, 11, 12, 13, 18])
@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        ([("Clip", 0, None)], "Relu"),
        ([("Clip", 0, 3.4028234663852886e38)], "Relu"),
        ([("Clip", None, None)], None),
        ([("Clip", -3.4028234663852886e38, 3.4028234663852886e38)], None),
        ([("Clip", 0, 6)], (0, 6)),
        ([("Relu", None, None), ("Clip", None, 6)], (0, 6)),
        ([("Relu", None, None), ("Min", None, 6)], (0, 6)),
        ([("Max", 0, None), ("Min", None, 6)], (0, 6)),
        ([("Min", None, 6), ("Max", 0, None)], (0, 6)),
        ([("Max", 0, None)], "Relu"),
        ([("Clip", -1, 4), ("Clip", 1, 9), ("Relu", None, None)], (1, 4)),
        ([("Clip", -1, 1), ("Clip", 3, 9)], (3, 3)),
        ([("Clip", 4, 2)], (2, 2)),
        ([("Clip", None, 2)], (-np.inf, 2)),
    ],
)
def test_each_form_of_clip_becomes_one(graphs: ModuleType, version: int, steps: Any, wanted: Any) -> None:
    made = bounded(graphs, version, *steps)
    after = clip(made)
    kinds = graphs.kinds(after)
    if wanted is None or wanted == "Relu":
        assert kinds == [*([wanted] if wanted else []), "Neg"]
    else:
        assert kinds == ["Clip", "Neg"]
        node, held = after.graph.node[0], graphs.constants(after)
        if version < 11:
            given = {one.name: one.f for one in node.attribute}
            assert (max(given["min"], -1e38), given["max"]) == (max(wanted[0], -1e38), wanted[1])
        else:
            found = [float(held[name]) if name else -np.inf for name in node.input[1:]]
            assert tuple(found) == wanted
            assert all(held[name].shape == () for name in node.input[1:] if name)
    # Min and Max did not broadcast up to 7; ONNX Runtime wants bounds in order up to 10.
    runs = version > 7 or not {"Min", "Max"} & {kind for kind, *_ in steps}
    if runs and (version > 10 or steps != [("Clip", 4, 2)]):
        feed = {"x": np.float32([[-9, -0.5, 0.5, 3.5, 20]])}
        graphs.assert_same(made, after, feed)


def test_a_value_that_others_read_ends_a_chain(graphs):
    made = bounded(graphs, 17, ("Relu", None, None), ("Clip", None, 6))
    made.graph.output.append(graphs.value("v0", ["n", 5]))
    after = clip(made)
    assert graphs.kinds(after) == ["Relu", "Clip", "Neg"]
    graphs.assert_same(made, after, {"x": floats(2, 5)})


def test_bounds_that_are_computed_or_change_the_shape_stay(graphs):
    nodes = [
        graphs.node("Clip", ["x", "low"], "c"),
        graphs.node("Max", ["c", "wide"], "m"),
        graphs.node("Min", ["m", "many"], "y"),
    ]
    constants = {"wide": np.zeros((1, 1, 1), np.float32), "many": floats(5)}
    made = graphs.model(nodes, {"x": [5], "low": []}, {"y": [1, 1, 5]}, constants)
    assert graphs.kinds(clip(made)) == ["Clip", "Max", "Min"]


def test_clips_of_integers_stay(graphs):
    nodes = [graphs.node("Clip", ["x", "zero"], "y")]
    made = graphs.model(nodes, {"x": ([3], graphs.INT64)}, {"y": ([3], graphs.INT64)}, {"zero": np.array(0)})
    assert graphs.kinds(clip(made)) == ["Clip"]


# BatchNormalization --------------------------------------------------------------------------------------------------


def normal(channels: int) -> dict[str, np.ndarray]:
    values = {name: floats(channels) for name in ("scale", "shift", "mean")}
    return values | {"var": RNG.uniform(0.2, 3, channels).astype(np.float32)}


def normalised(graphs: ModuleType, layer: Any, weights: dict[str, np.ndarray], shape: list[int], channels: int) -> Any:
    nodes = [layer, graphs.node("BatchNormalization", ["l", "scale", "shift", "mean", "var"], "b", epsilon=0.01)]
    outputs = {"y": ["n", channels, *(None for _ in shape[1:])]}
    return graphs.model(
        [*nodes, graphs.node("Neg", ["b"], "y")], {"x": ["n", *shape]}, outputs, weights | normal(channels)
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "groups"), [(k, g) for k in ("Conv", "ConvTranspose") for g in (1, 2, 4)])
def test_batchnorm_goes_into_convolutions(graphs: ModuleType, kind: str, groups: int, bias: bool) -> None:
    shape = (8, 4 // groups, 3, 3) if kind == "Conv" else (4, 8 // groups, 3, 3)
    weights = {"w": floats(*shape)} | ({"b0": floats(8)} if bias else {})
    layer = graphs.node(kind, ["x", *weights], "l", group=groups, strides=[2, 2])
    made = normalised(graphs, layer, weights, [4, 9, 9], 8)
    after = batchnorm(made)
    assert graphs.kinds(after) == [kind, "Neg"]
    assert len(after.graph.initializer) == 2
    graphs.assert_same(made, after, {"x": floats(2, 4, 9, 9)}, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (1,), (6,), (1, 6)])
def test_batchnorm_goes_into_gemm(graphs: ModuleType, turned: int, bias: tuple[int, ...] | None) -> None:
    weights = {"w": floats(*((6, 4) if turned else (4, 6)))} | ({} if bias is None else {"b0": floats(*bias)})
    layer = graphs.node("Gemm", ["x", *weights], "l", transB=turned, alpha=0.5, beta=2.0)
    made = normalised(graphs, layer, weights, [4], 6)
    after = batchnorm(made)
    assert graphs.kinds(after) == ["Gemm", "Neg"]
    graphs.assert_same(made, after, {"x": floats(3, 4)}, rtol=1e-4, atol=1e-4)


def test_weights_that_others_read_stay_for_them(graphs):
    weights = {"w": floats(4, 4, 3, 3)}
    made = normalised(graphs, graphs.node("Conv", ["x", "w"], "l", pads=[1] * 4), weights, [4, 5, 5], 4)
    made.graph.node.append(graphs.node("Conv", ["x", "w"], "z"))
    made.graph.output.append(graphs.value("z", ["n", 4, 3, 3]))
    after = batchnorm(made)
    assert sorted(graphs.kinds(after)) == ["Conv", "Conv", "Neg"]
    graphs.assert_same(made, after, {"x": floats(2, 4, 5, 5)}, rtol=1e-4, atol=1e-4)


def test_a_layer_that_others_read_keeps_its_batchnorm_as_product_and_sum(graphs):
    made = normalised(graphs, graphs.node("Conv", ["x", "w"], "l"), {"w": floats(4, 4, 3, 3)}, [4, 5, 5], 4)
    made.graph.output.append(graphs.value("l", ["n", 4, 3, 3]))
    after = batchnorm(made)
    assert graphs.kinds(after) == ["Conv", "Mul", "Add", "Neg"]
    graphs.assert_same(made, after, {"x": floats(2, 4, 5, 5)}, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("why", ["training", "computed", "negative variance", "opset 8, each place its own"])
def test_batchnorm_that_cannot_be_known_stays(graphs: ModuleType, why: str) -> None:
    names = ["x", "scale", "shift", "mean", "var"]
    constants, inputs, version, more = normal(3), {"x": [2, 3]}, 17, {}
    if why == "training":
        more = {"training_mode": 1}
    elif why == "computed":
        del constants["scale"]
        inputs["scale"] = [3]
    elif why == "negative variance":
        constants["var"] = np.float32([1, -1, 1])
    else:
        version, more = 8, {"spatial": 0}
    outputs = ["y", "m", "v"] if why == "training" else ["y"]
    nodes = [graphs.node("BatchNormalization", names, outputs, **more)]
    after = batchnorm(graphs.model(nodes, inputs, {"y": [2, 3]}, constants, opset=version))
    assert graphs.kinds(after) == ["BatchNormalization"]
