"""Sizes that are bound and inferred, and what is said of sizes that cannot be."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from outrider.compiler.passes.graph import types
from outrider.compiler.passes.shapes import bind, free_sizes, infer
from outrider.runtime.errors import BadInputError


def images(graphs: ModuleType) -> onnx.ModelProto:
    nodes = [
        graphs.node("Conv", ["x", "w"], "c", pads=[1, 1, 1, 1]),
        graphs.node("Shape", ["c"], "s"),
        graphs.node("Gather", ["s", "zero"], "rows"),
        graphs.node("Concat", ["rows", "rest"], "wanted", axis=0),
        graphs.node("Reshape", ["c", "wanted"], "f"),
        graphs.node("Add", ["f", "m"], "y"),
    ]
    constants = {"w": np.ones((4, 3, 3, 3), np.float32), "zero": np.array([0]), "rest": np.array([-1])}
    inputs = {"x": ["batch", 3, "height", "width"], "m": ["batch", None]}
    return graphs.model(nodes, inputs, {"y": ["batch", None]}, constants)


def test_sizes_are_bound_and_followed(graphs):
    made = bind(images(graphs), {"x": (2, 3, 8, 6), "m": (None, 192)})
    known = types(made.graph)
    assert known["x"][1] == (2, 3, 8, 6)
    assert known["c"][1] == (2, 4, 8, 6)
    assert known["m"][1] == (2, 192)  # its batch has the name of x's
    assert known["y"][1] == (2, 192)
    assert free_sizes(made) == {}


def test_none_and_absence_leave_sizes_free(graphs):
    before = images(graphs)
    made = bind(before, {"x": (None, None, 8, None)})
    assert free_sizes(made) == {"x": (0, 3), "m": (0, 1)}
    assert made.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert graphs.interface(bind(before, {})) == graphs.interface(before)


def test_sizes_that_a_file_claims_of_others_are_dropped(graphs):
    before = images(graphs)
    before.graph.value_info.append(graphs.value("c", [1, 4, 224, 224]))
    assert types(bind(before, {"x": (2, 3, 8, 6)}).graph)["c"][1] == (2, 4, 8, 6)
    assert types(infer(before).graph)["c"][1] == (None, 4, None, None)


def test_an_input_of_any_rank_takes_what_is_given(graphs):
    made = graphs.model([graphs.node("Relu", ["x"], "y")], {"x": None}, {"y": None})
    assert free_sizes(made) == {"x": ()}
    assert types(bind(made, {"x": (2, 3)}).graph)["y"][1] == (2, 3)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1,)}, r"no input 'z' \(its inputs: 'x', 'm'\)"),
        ({"x": (1, 3)}, r"'x' has 4 axes, 2 sizes were given: 1x3 \(its shape: batchx3xheightxwidth\)"),
        ({"x": (1, 4, 8, 8)}, "axis 1 of the input 'x' is fixed at 3, 4 was given"),
        ({"x": (0, 3, 8, 8)}, "axis 0 of the input 'x' cannot have the size 0"),
        ({"x": (1, 3, 8.5, 8)}, "axis 2 of the input 'x' cannot have the size 8.5"),
        ({"x": (1, 3, 8, 8), "m": (2, None)}, "are both 'batch', but 2 and 1 were given"),
    ],
)
def test_sizes_that_cannot_be(graphs: ModuleType, shapes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        bind(images(graphs), shapes)


def test_inference_that_fails_leaves_the_model(graphs):
    nodes = [graphs.node("Conv", ["x", "w"], "c"), graphs.node("Frobnicate", ["c"], "y", domain="mine")]
    made = graphs.model(nodes, {"x": [1, 3]}, {"y": [1, 2]}, {"w": np.ones((4, 3, 3, 3), np.float32)})
    made.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    assert infer(made) == made
