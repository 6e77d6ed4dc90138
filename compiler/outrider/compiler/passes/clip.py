"""Clip, Relu, Min and Max with constants, each in one form.

    Clip with no bounds                      nothing
    Clip from 0, Max with 0                  Relu
    Relu then Min, Max then Min, Clip twice  Clip, with its bounds as initialisers (attributes below opset 11)

Backends see ReLU6 as `Clip(x, 0, 6)` then, however the exporter wrote it. A NaN may come out as a bound where it came
out as NaN before, and the other way round: operators and engines differ in that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from outrider.compiler.passes.graph import (
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
from outrider.compiler.passes.simplify import simplify

if TYPE_CHECKING:
    import onnx

_BOUNDS_AS_INPUTS = 11
# By TensorProto.DataType.
_FLOATS: dict[int, Any] = {1: np.float32, 10: np.float16, 11: np.float64}


@dataclass(frozen=True)
class Bounds:
    """What a node holds its input between; infinite where there is no bound."""

    low: float
    high: float

    def then(self, after: Bounds) -> Bounds:
        """Both, one after the other. The second decides where they exclude each other."""
        return Bounds(
            min(max(self.low, after.low), after.high),
            min(max(self.high, after.low), after.high),
        )


_NONE = Bounds(-np.inf, np.inf)


def clip(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with each chain of Clip, Relu, Min and Max by constants as one Relu or Clip, or none.

    A chain is of nodes of which each is the only reader of the one before. Only floats of 16, 32 and 64 bits.
    """
    made = copied(model)
    if not any(standard(node, "Clip", "Relu", "Min", "Max") for graph in graphs(made.graph) for node in graph.node):
        return made
    annotate(made)
    names = Names(made)
    for graph in graphs(made.graph):
        _Rewrite(graph, names, opset(made)).run()
    drop_unused(made.graph)
    idle = any(standard(node, "Identity") for graph in graphs(made.graph) for node in graph.node)
    return simplify(made) if idle else made


class _Rewrite:
    def __init__(self, graph: onnx.GraphProto, names: Names, version: int) -> None:
        self._graph, self._names, self._version = graph, names, version
        self._constants, self._types, self._uses = constants(graph), types(graph), uses(graph)
        self._shared: dict[tuple[int, float], str] = {}
        self._chains: dict[str, tuple[str, Bounds]] = {}  # an output -> what it bounds, and how

    def run(self) -> None:
        kept: list[onnx.NodeProto] = []
        changed = False
        for node in self._graph.node:
            given = self._bounded(node)
            if given is None:
                kept.append(node)
                continue
            source, bounds = given
            start = source
            if source in self._chains and self._uses[source] == 1:
                start, before = self._chains[source]
                bounds = before.then(bounds)
            self._chains[node.output[0]] = (start, bounds)
            made = self._written(node, start, bounds)
            changed |= made is not node
            kept.append(made)
        if changed:
            del self._graph.node[:]
            self._graph.node.extend(kept)

    def _bounded(self, node: onnx.NodeProto) -> tuple[str, Bounds] | None:
        """What a node bounds, and how; None where it does something else."""
        if not standard(node, "Clip", "Relu", "Min", "Max") or self._kind(node) not in _FLOATS:
            return None
        if node.op_type == "Relu":
            return node.input[0], Bounds(0, np.inf)
        if node.op_type == "Clip":
            bounds = self._clip_bounds(node)
            return None if bounds is None else (node.input[0], bounds)
        fixed = [name for name in node.input if name in self._constants]
        free = [name for name in node.input if name not in self._constants]
        if len(free) != 1 or not fixed:
            return None
        values = [self._scalar(name, free[0]) for name in fixed]
        numbers = [value for value in values if value is not None]
        if len(numbers) != len(values):
            return None
        return free[0], Bounds(max(numbers), np.inf) if node.op_type == "Max" else Bounds(-np.inf, min(numbers))

    def _kind(self, node: onnx.NodeProto) -> int:
        known = self._types.get(node.output[0]) or self._types.get(node.input[0])
        return known[0] if known else 0

    def _clip_bounds(self, node: onnx.NodeProto) -> Bounds | None:
        if self._version < _BOUNDS_AS_INPUTS:
            low, high = attribute(node, "min", -np.inf), attribute(node, "max", np.inf)
        else:
            found: list[float] = []
            for place, missing in ((1, -np.inf), (2, np.inf)):
                name = node.input[place] if len(node.input) > place else ""
                value = self._scalar(name, None) if name else missing
                if value is None:
                    return None
                found.append(value)
            low, high = found
        # The ends of the type are no bounds; where low is above high, high decides.
        end = float(np.finfo(_FLOATS[self._kind(node)]).max)
        low, high = (-np.inf if low <= -end else low), (np.inf if high >= end else high)
        return Bounds(min(low, high), high)

    def _scalar(self, name: str, beside: str | None) -> float | None:
        """A constant of one number that is no NaN. `beside`: a tensor whose shape it must not change."""
        if name not in self._constants:
            return None
        tensor = self._constants[name]
        if int(np.prod(tensor.dims)) != 1:
            return None
        if beside is not None and tensor.dims:
            dims = self._types[beside][1] if beside in self._types else None
            if dims is None or len(dims) < len(tensor.dims):
                return None
        value = float(array_of(tensor).reshape(-1)[0])
        return None if np.isnan(value) else value

    def _written(self, node: onnx.NodeProto, start: str, bounds: Bounds) -> Any:
        """A node that holds `start` between the bounds, under the output of `node`."""
        import onnx

        kind = self._kind(node)
        if bounds == _NONE:
            return onnx.helper.make_node("Identity", [start], [node.output[0]], name=node.name)
        if bounds == Bounds(0, np.inf):
            if node.op_type == "Relu" and node.input[0] == start:
                return node
            return onnx.helper.make_node("Relu", [start], [node.output[0]], name=node.name)
        end = float(np.finfo(_FLOATS[kind]).max)
        low, high = float(max(bounds.low, -end)), float(min(bounds.high, end))
        if self._version < _BOUNDS_AS_INPUTS:
            return onnx.helper.make_node("Clip", [start], [node.output[0]], name=node.name, min=low, max=high)
        given = [start]
        given.append("" if np.isneginf(bounds.low) else self._bound(kind, low))
        if not np.isposinf(bounds.high):
            given.append(self._bound(kind, high))
        return onnx.helper.make_node("Clip", given, [node.output[0]], name=node.name)

    def _bound(self, kind: int, value: float) -> str:
        """The name of an initialiser with this number, the same for all who want it."""
        if (kind, value) not in self._shared:
            name = self._names.fresh(f"bound_{value:g}")
            self._shared[kind, value] = name
            self._graph.initializer.append(tensor_of(np.array(value, _FLOATS[kind]), name))
        return self._shared[kind, value]
