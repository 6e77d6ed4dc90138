"""A calibrated model in which each layer can be rounded to int8 by itself, without being loaded anew each time.

Weights become inputs, so that a layer's rounded weights are fed in place of its own; what a layer reads goes through

    If(switch):  DequantizeLinear(QuantizeLinear(x))   else:  x
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from outrider.compiler import onnx_session
from outrider.compiler.passes.feeds import Feed
from outrider.compiler.passes.graph import Array, Names, array_of, attribute, constants, drop_unused, tensor_of
from outrider.compiler.passes.int8 import Calibration
from outrider.compiler.passes.ranges import Range
from outrider.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx

Outputs = list[list[NDArray[Any]]]  # by feed, by output

_HIGHEST = 127  # of int8 weights, which have no zero point
_STEPS = 255  # between the lowest and the highest number of uint8


@dataclass(frozen=True)
class Weights:
    """A layer's weights: the input that takes them, and the axis of the channels that it gives."""

    name: str
    values: Array
    axis: int

    def rounded(self) -> Array:
        """The weights after int8 with a scale for each channel."""
        others = tuple(axis for axis in range(self.values.ndim) if axis != self.axis)
        largest = np.abs(self.values).max(axis=others, keepdims=True, initial=0)
        scale = np.where(largest > 0, largest, 1) / _HIGHEST
        return (np.rint(self.values / scale) * scale).astype(self.values.dtype)


class Switched:
    """A calibrated model with a switch for each layer. Raises UnsupportedError where ONNX Runtime cannot load it."""

    def __init__(self, calibration: Calibration) -> None:
        self._switches: dict[str, str] = {}  # a layer -> the input that says whether it is rounded
        self._weights: dict[str, Weights] = {}  # by layer
        self._session = open_session(self._model(calibration).SerializeToString())

    def run(self, feeds: Sequence[Feed], layer: str | None) -> Outputs:
        """The model's outputs for each feed with this layer in int8, or none."""
        more = {name: np.array(one == layer) for one, name in self._switches.items()}
        more |= {one.name: one.values for one in self._weights.values()}
        if layer in self._weights:
            more[self._weights[layer].name] = self._weights[layer].rounded()
        return run_session(self._session, [{**feed, **more} for feed in feeds])

    def rounding(self, layer: str) -> float:
        """The relative error (Euclidean norms) of a layer's weights in int8; 0 where they are not constant."""
        if layer not in self._weights:
            return 0.0
        one = self._weights[layer]
        size = float(np.linalg.norm(one.values))
        return float(np.linalg.norm(one.rounded() - one.values)) / size if size else 0.0

    def _model(self, calibration: Calibration) -> onnx.ModelProto:
        import onnx

        made = calibration.model()
        graph, names, known, layers = made.graph, Names(made), constants(made.graph), set(calibration.layers)
        kept: list[onnx.NodeProto] = []
        for node in graph.node:
            if node.name in layers:
                switch = self._switches[node.name] = names.fresh(f"{node.name}_switch")
                graph.input.append(onnx.helper.make_tensor_value_info(switch, onnx.TensorProto.BOOL, ()))
                for place, name in enumerate(node.input[:2]):
                    if place == 1 and name in known and known[name].data_type == onnx.TensorProto.FLOAT:
                        weights = Weights(
                            names.fresh(f"{node.name}_weights"), array_of(known[name]), _axis(node, known)
                        )
                        self._weights[node.name] = weights
                        node.input[place] = weights.name
                        shape = weights.values.shape
                        kind = onnx.TensorProto.FLOAT
                        graph.input.append(onnx.helper.make_tensor_value_info(weights.name, kind, shape))
                    elif name in calibration.ranges:
                        kept.append(_rounding(name, calibration.ranges[name], switch, names))
                        node.input[place] = kept[-1].output[0]
            kept.append(node)
        del graph.node[:]
        graph.node.extend(kept)
        drop_unused(graph)
        return made


def _axis(node: onnx.NodeProto, known: Mapping[str, onnx.TensorProto]) -> int:
    """The axis of a layer's weights that counts the channels it gives."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)):
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    return max(len(known[node.input[1]].dims) - 1, 0)


def _rounding(name: str, one: Range, switch: str, names: Names) -> onnx.NodeProto:
    """A node that gives a value as it is, or as it is after uint8 over its range."""
    import onnx

    low, high = min(one[0], 0.0), max(one[1], 0.0)
    scale = (high - low) / _STEPS or 1.0
    zero = np.uint8(np.clip(np.rint(-low / scale), 0, _STEPS))
    scale_name, zero_name = names.fresh(f"{name}_scale"), names.fresh(f"{name}_zero")
    steps, rounded, same = (names.fresh(f"{name}_{word}") for word in ("steps", "rounded", "same"))
    then = onnx.GraphProto(name="rounded")
    then.initializer.extend((tensor_of(np.array(scale, np.float32), scale_name), tensor_of(np.array(zero), zero_name)))
    then.node.append(onnx.helper.make_node("QuantizeLinear", [name, scale_name, zero_name], [steps]))
    then.node.append(onnx.helper.make_node("DequantizeLinear", [steps, scale_name, zero_name], [rounded]))
    then.output.add(name=rounded)
    other = onnx.GraphProto(name="same", node=[onnx.helper.make_node("Identity", [name], [same])])
    other.output.add(name=same)
    made = names.fresh(f"{name}_switched")
    return onnx.helper.make_node("If", [switch], [made], then_branch=then, else_branch=other)


def open_session(data: bytes) -> Any:
    """A session of ONNX Runtime on one thread. Raises UnsupportedError where it cannot load the model."""
    try:
        return onnx_session.open_session(data)
    except Exception as e:  # of many kinds, some not exported
        raise UnsupportedError(f"ONNX Runtime cannot load the model: {e}") from e


def run_session(session: Any, feeds: Sequence[Feed]) -> Outputs:
    """The outputs for each feed. Raises UnsupportedError where ONNX Runtime cannot compute them."""
    try:
        return [session.run(None, {name: np.asarray(values) for name, values in feed.items()}) for feed in feeds]
    except Exception as e:  # of many kinds, some not exported
        raise UnsupportedError(f"ONNX Runtime cannot run the model: {e}") from e
