"""Small ONNX graphs for the tests of passes, written node by node or at random, and how two of them are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def node(kind: str, given: Sequence[str], made: Sequence[str] | str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, given, [made] if isinstance(made, str) else made, **attributes)


def value(name: str, shape: Sequence[Any] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    constants: Mapping[str, Any] | None = None,
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """A model. Inputs and outputs: name -> shape, or (shape, type)."""
    made = helper.make_graph(
        nodes,
        "graph",
        [_value(name, spec) for name, spec in inputs.items()],
        [_value(name, spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in (constants or {}).items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def _value(name: str, spec: Any) -> onnx.ValueInfoProto:
    return value(name, *spec) if isinstance(spec, tuple) else value(name, spec)


def run(model: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    """The outputs, by ONNX Runtime as it is without any optimisation of its own."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))


def kinds(model: onnx.ModelProto) -> list[str]:
    return [one.op_type for one in model.graph.node]


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def interface(model: onnx.ModelProto) -> list[bytes]:
    """Names, types and sizes of inputs and outputs, in their order."""
    held = {tensor.name for tensor in model.graph.initializer} if model.ir_version < 4 else set()
    values = [one for one in model.graph.input if one.name not in held]
    return [one.SerializeToString(deterministic=True) for one in (*values, *model.graph.output)]


def assert_same(
    before: onnx.ModelProto, after: onnx.ModelProto, feed: Mapping[str, Array], rtol: float = 1e-5, atol: float = 1e-5
) -> None:
    """The same interface, a sound model, and the same values."""
    onnx.checker.check_model(after, full_check=True)
    assert interface(after) == interface(before)
    for found, wanted in zip(run(after, feed), run(before, feed), strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)


def relative(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


# Networks ------------------------------------------------------------------------------------------------------------


def convnet(opset: int = 17) -> onnx.ModelProto:
    """A small network of every layer that int8 is for: [n, 3, 16, 16] -> [n, 10]."""
    rng = np.random.default_rng(2)

    def weights(*shape: int) -> Array:
        return (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)

    constants: dict[str, Any] = {
        "w1": weights(16, 3, 3, 3),
        "w2": weights(16, 1, 3, 3),
        "w3": weights(24, 16, 1, 1),
        "w4": weights(24, 10),
        "b4": rng.normal(size=10).astype(np.float32),
        **{name: rng.normal(size=16).astype(np.float32) * 0.1 for name in ("shift", "mean")},
        **{name: rng.uniform(0.5, 1.5, 16).astype(np.float32) for name in ("scale", "var")},
    }
    clip = node("Clip", ["d"], "r2", min=0.0, max=6.0)
    if opset >= 11:
        clip = node("Clip", ["d", "zero", "six"], "r2")
        constants |= {"zero": np.float32(0), "six": np.float32(6)}
    nodes = [
        node("Conv", ["x", "w1"], "c", pads=[1, 1, 1, 1], name="first"),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], "b"),
        node("Relu", ["b"], "r1"),
        node("Conv", ["r1", "w2"], "d", pads=[1, 1, 1, 1], group=16, name="depthwise"),
        clip,
        node("Conv", ["r2", "w3"], "p", name="pointwise"),
        node("GlobalAveragePool", ["p"], "g"),
        node("Flatten", ["g"], "f"),
        node("MatMul", ["f", "w4"], "m", name="fc"),
        node("Add", ["m", "b4"], "y", name="bias"),
    ]
    return model(nodes, {"x": ["n", 3, 16, 16]}, {"y": ["n", 10]}, constants, opset)


def images(count: int, seed: int = 1) -> list[dict[str, Array]]:
    """Feeds for `convnet`, of one image each."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]


# At random -----------------------------------------------------------------------------------------------------------


class Random:
    """Layers one after another on [n, channels, 8, 8], some of which do nothing, with branches that meet again."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, Array] = {}
        self._channels = 4
        self._seen: list[tuple[str, int]] = [("x", 4)]
        for _ in range(int(self._rng.integers(4, 14))):
            steps = (self._conv, self._conv, self._norm, self._bound, self._bound, self._idle, self._join, self._shapes)
            at, channels = (
                self._seen[-1] if self._rng.random() < 0.8 else self._seen[self._rng.integers(len(self._seen))]
            )
            made, channels = steps[self._rng.integers(len(steps))](at, channels)
            self._seen.append((made, channels))
        last, channels = self._seen[-1]
        self._add("Identity", [last], "y")
        outputs: dict[str, Any] = {"y": ["n", channels, 8, 8]}
        other, width = self._seen[self._rng.integers(len(self._seen))]
        if other not in ("x", last):
            self._add("Identity", [other], "z")
            outputs["z"] = ["n", width, 8, 8]
        self.model = model(self._nodes, {"x": ["n", 4, 8, 8]}, outputs, self._constants)
        self.feed = {"x": self._rng.normal(size=(2, 4, 8, 8)).astype(np.float32)}

    def _add(self, kind: str, given: list[str], made: str | None = None, **attributes: Any) -> str:
        name = made or f"v{len(self._nodes)}"
        self._nodes.append(node(kind, given, name, **attributes))
        return name

    def _held(self, values: Any) -> str:
        name = f"k{len(self._constants)}"
        self._constants[name] = np.asarray(values)
        return name

    def _floats(self, *shape: int, scale: float = 1.0) -> str:
        return self._held((self._rng.normal(size=shape) * scale).astype(np.float32))

    def _conv(self, at: str, channels: int) -> tuple[str, int]:
        groups = int(self._rng.choice([1, 2, channels]))
        out = groups * int(self._rng.integers(1, 3))
        if self._rng.random() < 0.3:
            given = [at, self._floats(channels, out // groups, 3, 3, scale=0.3)]
            kind = "ConvTranspose"
        else:
            given = [at, self._floats(out, channels // groups, 3, 3, scale=0.3)]
            kind = "Conv"
        if self._rng.random() < 0.5:
            given.append(self._floats(out))
        made = self._add(kind, given, group=groups, pads=[1, 1, 1, 1])
        # Where a layer is normalised at once, it is folded; an even width keeps groups possible.
        if self._rng.random() < 0.6:
            made, _ = self._norm(made, out)
        if out % 2:
            made = self._add("Concat", [made, made], axis=1)
            out *= 2
        return made, out

    def _norm(self, at: str, channels: int) -> tuple[str, int]:
        positive = self._held(self._rng.uniform(0.5, 2, channels).astype(np.float32))
        given = [at, self._floats(channels), self._floats(channels), self._floats(channels), positive]
        return self._add("BatchNormalization", given, epsilon=1e-3), channels

    def _bound(self, at: str, channels: int) -> tuple[str, int]:
        low, high = (self._held(np.float32(v)) for v in sorted(self._rng.normal(size=2)))
        zero = self._held(np.float32(0))
        ways = [
            lambda: self._add("Relu", [at]),
            lambda: self._add("Clip", [at, low, high]),
            lambda: self._add("Clip", [at, "", high]),
            lambda: self._add("Clip", [at, zero]),
            lambda: self._add("Clip", [at]),
            lambda: self._add("Max", [low, at]),
            lambda: self._add("Min", [self._add("Max", [at, zero]), high]),
        ]
        return ways[self._rng.integers(len(ways))](), channels

    def _idle(self, at: str, channels: int) -> tuple[str, int]:
        ways = [
            lambda: self._add("Identity", [at]),
            lambda: self._add("Dropout", [at]),
            lambda: self._add("Cast", [at], to=FLOAT),
            lambda: self._add("Transpose", [at], perm=[0, 1, 2, 3]),
            lambda: self._add("Pad", [at, self._held(np.zeros(8, np.int64))]),
            lambda: self._add("Concat", [at], axis=1),
        ]
        return ways[self._rng.integers(len(ways))](), channels

    def _join(self, at: str, channels: int) -> tuple[str, int]:
        fitting = [name for name, width in self._seen if width == channels]
        return self._add("Add", [at, fitting[self._rng.integers(len(fitting))] if fitting else at]), channels

    def _shapes(self, at: str, channels: int) -> tuple[str, int]:
        """Flatten the pixels and bring them back, by a shape that is computed."""
        shape = self._add("Shape", [at])
        flat = self._add("Reshape", [at, self._held(np.array([0, channels, -1], np.int64))])
        scaled = self._add("Mul", [flat, self._add("Mul", [self._floats(1), self._floats(1)])])
        return self._add("Reshape", [scaled, shape]), channels
