"""What pnnx gets wrong in an ONNX graph, said in a way that it gets right."""

from __future__ import annotations

from typing import Any

import numpy as np

from outrider.compiler.passes.graph import opset

_REDUCTIONS = ("ReduceMean", "ReduceSum")
_AXES_ARE_INPUT = 13  # the opset from which Unsqueeze, Squeeze and ReduceSum take their axes as an input
_MEAN_AXES_ARE_INPUT = 18  # and ReduceMean


def widen_reductions(model: Any) -> None:
    """Reduce over two axes where the graph reduces over one, in place: the second one is new, of size 1.

    pnnx loses a single axis, and what it then writes reduces nothing.
    """
    from onnx import helper

    version = opset(model)
    constants = _constants(model.graph)
    nodes: list[Any] = []
    for number, node in enumerate(model.graph.node):
        axis = _single_axis(node, constants) if node.op_type in _REDUCTIONS else None
        if axis is None:
            nodes.append(node)
            continue
        new = axis if axis < 0 else axis + 1
        made = _Maker(model.graph, f"outrider_{number}", version)
        wide = made.node("Unsqueeze", node.input[0], [new])
        keep = next((each.i for each in node.attribute if each.name == "keepdims"), 1)
        pair = sorted((new - 1, new))
        by_input = version >= (_MEAN_AXES_ARE_INPUT if node.op_type == "ReduceMean" else _AXES_ARE_INPUT)
        reduced = made.node(node.op_type, wide, pair, by_input=by_input, keepdims=keep)
        if keep:
            reduced = made.node("Squeeze", reduced, [new])
        nodes.extend((*made.nodes, helper.make_node("Identity", [reduced], list(node.output))))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


class _Maker:
    """Makes a chain of nodes with axes, as attributes or as inputs, with names of their own."""

    def __init__(self, graph: Any, prefix: str, opset: int) -> None:
        self.nodes: list[Any] = []
        self._graph, self._prefix, self._opset = graph, prefix, opset

    def node(self, kind: str, source: str, axes: list[int], *, by_input: bool | None = None, **attributes: Any) -> str:
        from onnx import helper, numpy_helper

        name = f"{self._prefix}_{len(self.nodes)}"
        inputs = [source]
        if self._opset >= _AXES_ARE_INPUT if by_input is None else by_input:
            self._graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), f"{name}_axes"))
            inputs.append(f"{name}_axes")
            self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        else:
            self.nodes.append(helper.make_node(kind, inputs, [name], name=name, axes=axes, **attributes))
        return name


def _constants(graph: Any) -> dict[str, Any]:
    """Tensors that are known, by name: initializers and constant nodes."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def _single_axis(node: Any, constants: dict[str, Any]) -> int | None:
    from onnx import numpy_helper

    axes: list[int] = []
    for attribute in node.attribute:
        if attribute.name == "axes":
            axes = list(attribute.ints)
    if len(node.input) > 1 and node.input[1] in constants:
        axes = numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist()
    return int(axes[0]) if len(axes) == 1 else None
