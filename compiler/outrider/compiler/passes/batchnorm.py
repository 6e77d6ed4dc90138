"""Fold BatchNormalization into the layer before it, or make it a product and a sum.

s = scale / sqrt(var + epsilon)
BN(conv(x, W, b))  =  conv(x, W s, (b - mean) s + B)          BN(x)  =  x s + (B - mean s)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from outrider.compiler.passes.graph import (
    Array,
    Names,
    array_of,
    attribute,
    constants,
    copied,
    drop_unused,
    graphs,
    opset,
    standard,
    tensor_of,
    types,
    uses,
)
from outrider.compiler.passes.shapes import annotate

if TYPE_CHECKING:
    import onnx

_WITHOUT_TRAINING = 7  # before, an attribute says that the node is not training
_WITH_MODE = 14  # from here on, an attribute says that it is


@dataclass(frozen=True)
class Affine:
    """What a BatchNormalization does to each channel: factor and offset, float64 [channels]."""

    factor: Array
    offset: Array


def batchnorm(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without BatchNormalization, wherever its parameters are constants and it is not training.

    One behind Conv, ConvTranspose or Gemm goes into their weights and bias, where nothing else reads what they give.
    Any other becomes Mul and Add, where the number of axes is known.
    """
    made = copied(model)
    if not any(standard(node, "BatchNormalization") for graph in graphs(made.graph) for node in graph.node):
        return made
    annotate(made)
    names = Names(made)
    for graph in graphs(made.graph):
        _Rewrite(graph, names, opset(made)).run()
    drop_unused(made.graph)
    return made


class _Rewrite:
    def __init__(self, graph: onnx.GraphProto, names: Names, version: int) -> None:
        self._graph, self._names, self._version = graph, names, version
        self._constants, self._types, self._uses = constants(graph), types(graph), uses(graph)
        self._makers = {node.output[0]: node for node in graph.node if node.output}

    def run(self) -> None:
        kept: list[onnx.NodeProto] = []
        for node in self._graph.node:
            affine = self._affine(node) if standard(node, "BatchNormalization") else None
            if affine is None:
                kept.append(node)
            elif not self._into_layer(node, affine):
                kept.extend(self._alone(node, affine) or [node])
        del self._graph.node[:]
        self._graph.node.extend(kept)

    def _affine(self, node: onnx.NodeProto) -> Affine | None:
        """What the node does; None where that is not known ahead."""
        if any(self._uses[name] for name in node.output[1:] if name) or not attribute(node, "spatial", 1):
            return None
        training = attribute(node, "training_mode", 0) if self._version >= _WITH_MODE else 0
        if training or (self._version < _WITHOUT_TRAINING and not attribute(node, "is_test", 0)):
            return None
        if any(name not in self._constants for name in node.input[1:5]):
            return None
        scale, bias, mean, var = (array_of(self._constants[name]).astype(np.float64) for name in node.input[1:5])
        with np.errstate(all="ignore"):
            factor = scale / np.sqrt(var + attribute(node, "epsilon", 1e-5))
            offset = bias - mean * factor
        if not (np.isfinite(factor).all() and np.isfinite(offset).all()):
            return None
        return Affine(factor, offset)

    # Into the layer before -----------------------------------------------------------------------------------------

    def _into_layer(self, node: onnx.NodeProto, affine: Affine) -> bool:
        layer = self._makers.get(node.input[0])
        if layer is None or not standard(layer, "Conv", "ConvTranspose", "Gemm") or self._uses[node.input[0]] != 1:
            return False
        bias_name = layer.input[2] if len(layer.input) > 2 else ""
        if layer.input[1] not in self._constants or (bias_name and bias_name not in self._constants):
            return False
        weights = array_of(self._constants[layer.input[1]])
        if weights.dtype not in (np.float16, np.float32, np.float64):
            return False
        channels = len(affine.factor)
        bias = array_of(self._constants[bias_name]).astype(np.float64) if bias_name else np.zeros(())
        scaled = _scaled(layer, weights.astype(np.float64), affine.factor)
        if scaled is None or bias.shape not in ((), (1,), (channels,), (1, channels)):
            return False
        if layer.op_type == "Gemm":
            bias = bias * attribute(layer, "beta", 1.0)
        moved = np.broadcast_to(bias.reshape(-1), (channels,)) * affine.factor + affine.offset
        with np.errstate(over="ignore"):
            new_weights, new_bias = scaled.astype(weights.dtype), moved.astype(weights.dtype)
        if not (np.isfinite(new_weights).all() and np.isfinite(new_bias).all()):
            return False
        self._put(layer, new_weights, new_bias)
        layer.output[0] = node.output[0]
        self._makers[node.output[0]] = layer
        return True

    def _put(self, layer: onnx.NodeProto, weights: Array, bias: Array) -> None:
        given = [layer.input[0], self._new(layer.input[1], weights)]
        given.append(self._new(layer.input[2] if len(layer.input) > 2 and layer.input[2] else f"{given[1]}_bias", bias))
        del layer.input[:]
        layer.input.extend(given)
        for one in layer.attribute:
            if layer.op_type == "Gemm" and one.name == "beta":
                one.f = 1.0

    def _new(self, wish: str, values: Array) -> str:
        """A new constant, under a name of its own: others may read the one before."""
        name = self._names.fresh(f"{wish}_bn")
        tensor = tensor_of(values, name)
        self._graph.initializer.append(tensor)
        self._constants[name] = tensor
        return name

    # Alone -----------------------------------------------------------------------------------------------------------

    def _alone(self, node: onnx.NodeProto, affine: Affine) -> list[onnx.NodeProto] | None:
        import onnx

        kind, dims = self._types.get(node.input[0], (0, None))
        if dims is None or len(dims) < 2 or kind not in (1, 10, 11):
            return None
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        shape = (len(affine.factor), *(1 for _ in dims[2:]))
        with np.errstate(over="ignore"):
            factor, offset = (values.astype(dtype).reshape(shape) for values in (affine.factor, affine.offset))
        if not (np.isfinite(factor).all() and np.isfinite(offset).all()):
            return None
        between = self._names.fresh(f"{node.output[0]}_scaled")
        factor_name, offset_name = self._new(node.input[1], factor), self._new(node.input[2], offset)
        name = node.name or node.output[0]
        mul = onnx.helper.make_node(
            "Mul", [node.input[0], factor_name], [between], name=self._names.fresh(f"{name}_mul")
        )
        add = onnx.helper.make_node(
            "Add", [between, offset_name], [node.output[0]], name=self._names.fresh(f"{name}_add")
        )
        return [mul, add]


def _scaled(layer: onnx.NodeProto, weights: Array, factor: Array) -> Array | None:
    """A layer's weights times a factor for each channel that it gives; None where the two do not fit."""
    channels = len(factor)
    if layer.op_type == "Conv":
        if weights.ndim < 3 or weights.shape[0] != channels:
            return None
        return weights * factor.reshape(-1, *(1,) * (weights.ndim - 1))
    if layer.op_type == "ConvTranspose":  # [channels in, channels out / groups, ...]
        groups = attribute(layer, "group", 1)
        if weights.ndim < 3 or weights.shape[1] * groups != channels or weights.shape[0] % groups:
            return None
        split = weights.reshape(groups, -1, *weights.shape[1:])
        by_group = factor.reshape(groups, 1, -1, *(1,) * (weights.ndim - 2))
        return (split * by_group).reshape(weights.shape)
    axis = 0 if attribute(layer, "transB", 0) else 1
    if weights.ndim != 2 or weights.shape[axis] != channels:
        return None
    return weights * (factor[:, None] if axis == 0 else factor[None, :])
