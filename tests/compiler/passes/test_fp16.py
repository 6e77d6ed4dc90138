"""What becomes float16, what stays float32, and weights that do not fit."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from outrider.compiler.passes.fp16 import fp16, halves
from outrider.runtime.errors import UnsupportedError

RNG = np.random.default_rng(4)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def test_weights_are_halved_and_casts_are_few(graphs):
    nodes = [
        graphs.node("MatMul", ["x", "v"], "m"),
        graphs.node("Relu", ["m"], "r"),
        graphs.node("MatMul", ["r", "w"], "s"),
        graphs.node("Softmax", ["s"], "y"),
    ]
    made = graphs.model(nodes, {"x": ["n", 64]}, {"y": ["n", 8]}, {"v": floats(64, 64), "w": floats(64, 8)})
    after = fp16(made)
    assert graphs.kinds(after) == ["Cast", "MatMul", "Relu", "MatMul", "Cast", "Softmax"]
    assert {values.dtype for values in graphs.constants(after).values()} == {np.dtype(np.float16)}
    assert len(after.SerializeToString()) < 0.6 * len(made.SerializeToString())
    graphs.assert_same(made, after, {"x": floats(3, 64)}, rtol=0.05, atol=0.01)


def test_one_value_in_both_forms_is_cast_once(graphs):
    nodes = [
        graphs.node("Mul", ["x", "c"], "p"),
        graphs.node("Exp", ["p"], "e"),
        graphs.node("Log", ["e"], "l"),
        graphs.node("Add", ["l", "p"], "a"),
        graphs.node("Mul", ["l", "c"], "b"),
        graphs.node("Pow", ["a", "c"], "f"),
        graphs.node("Sum", ["f", "b", "p"], "y"),
    ]
    made = graphs.model(nodes, {"x": [4]}, {"y": [4], "p": [4]}, {"c": np.float32([1, 2, 1, 2])})
    after = fp16(made)
    graphs.assert_same(made, after, {"x": np.float32([0.1, 0.2, 0.3, 0.4])}, rtol=5e-3, atol=5e-3)
    casts = [(one.input[0], one.output[0]) for one in after.graph.node if one.op_type == "Cast"]
    assert len({given for given, _ in casts}) == len(casts)
    assert sorted(graphs.constants(after)) == ["c", "c_half"]


def test_what_only_takes_float32_gets_it(graphs):
    nodes = [
        graphs.node("Relu", ["x"], "r"),
        graphs.node("Resize", ["r", "", "scales"], "big", mode="nearest"),
        graphs.node("QuantizeLinear", ["big", "scale", "zero"], "q"),
        graphs.node("DequantizeLinear", ["q", "scale", "zero"], "d"),
        graphs.node("Shape", ["d"], "shape"),
        graphs.node("ConstantOfShape", ["shape"], "zeros"),
        graphs.node("Add", ["d", "zeros"], "y"),
    ]
    constants = {"scales": np.float32([1, 1, 2, 2]), "scale": np.float32(0.1), "zero": np.uint8(0)}
    made = graphs.model(nodes, {"x": [1, 1, 2, 2]}, {"y": [1, 1, 4, 4]}, constants)
    after = fp16(made)
    graphs.assert_same(made, after, {"x": floats(1, 1, 2, 2)}, rtol=1e-2, atol=0.11)


def test_other_types_and_foreign_operators_are_left_alone(graphs):
    nodes = [
        graphs.node("Gelu", ["x"], "g", domain="com.microsoft"),
        graphs.node("Mul", ["g", "c"], "m"),
        graphs.node("Cast", ["i"], "wide", to=graphs.FLOAT),
        graphs.node("Add", ["m", "wide"], "y"),
        graphs.node("Add", ["i", "i"], "j"),
    ]
    inputs = {"x": [3], "i": ([3], graphs.INT64)}
    made = graphs.model(nodes, inputs, {"y": [3], "j": ([3], graphs.INT64)}, {"c": floats(3)})
    made.opset_import.add(domain="com.microsoft", version=1)
    after = fp16(made)
    feed = {"x": floats(3), "i": np.array([1, 2, 3])}
    for found, wanted in zip(graphs.run(after, feed), graphs.run(made, feed), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=5e-3, atol=5e-3)


def test_what_onnx_runtime_cannot_do_in_float16_stays(graphs):
    nodes = [
        graphs.node("Relu", ["x"], "r"),
        graphs.node("ScatterND", ["r", "at", "x"], "s", reduction="add"),
        graphs.node("Relu", ["s"], "y"),
    ]
    made = graphs.model(nodes, {"x": [2]}, {"y": [2]}, {"at": np.array([[1], [1]])}, opset=18)
    after = fp16(made)
    assert graphs.kinds(after) == ["Cast", "Relu", "Cast", "ScatterND", "Cast", "Relu", "Cast"]
    graphs.assert_same(made, after, {"x": np.float32([1, 2])})


def test_a_weight_that_is_too_large_is_named(graphs: ModuleType) -> None:
    made = graphs.model(
        [graphs.node("Mul", ["x", "large"], "y")], {"x": [3]}, {"y": [3]}, {"large": np.float32([1, -70000, 3])}
    )
    with pytest.raises(UnsupportedError, match="the weight 'large' holds -70000, and float16 ends at 65504"):
        fp16(made)


def test_masks_and_tiny_numbers_keep_their_meaning():
    given = np.float32([np.finfo(np.float32).min, 3e38, -np.inf, 1e-12, -1e-12, 0, 1, 65504])
    wanted = np.float16([-65504, 65504, -np.inf, 2.0**-24, -(2.0**-24), 0, 1, 65504])
    assert np.array_equal(halves(given, "w"), wanted)
    assert halves(np.float32(1e-12), "w").shape == ()
