"""Remove what does nothing: nodes that pass their input on, nodes computed twice, what nothing reads."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from outrider.compiler.passes.graph import (
    RANDOM,
    Dims,
    array_of,
    attribute,
    captured,
    constants,
    copied,
    drop_unused,
    has_subgraphs,
    opset,
    reread,
    standard,
    subgraphs,
    types,
)

if TYPE_CHECKING:
    import onnx

_DROPOUT_WITH_MODE = 12  # the version in which Dropout got an input that says whether it is training
_DROPOUT_FOR_INFERENCE = 7  # before, an attribute said so

Key = tuple[object, ...]


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without Identity, Dropout and the like, duplicates, dead nodes, and initialisers that nothing reads.

    Functions that the model defines are written out where they are called. Graphs within If, Loop and Scan are
    simplified too, each by itself.
    """
    from onnx import inliner

    made = copied(model)
    if made.functions:
        made = inliner.inline_local_functions(made)
    _simplify_graph(made.graph, opset(made))
    drop_unused(made.graph)
    return made


def _simplify_graph(graph: onnx.GraphProto, version: int) -> None:
    for node in graph.node:
        for inner in subgraphs(node):
            _simplify_graph(inner, version)
    _Sweep(graph, version).run()
    _name_outputs(graph, version)


class _Sweep:
    """One walk over a graph's nodes: who computes what is already there, under another name?"""

    def __init__(self, graph: onnx.GraphProto, version: int) -> None:
        self._graph = graph
        self._outputs = {value.name for value in graph.output}
        self._idle = _Idle(graph, version)
        self._instead: dict[str, str] = {}  # a name -> the one to read instead
        self._seen: dict[Key, onnx.NodeProto] = {}

    def run(self) -> None:
        self._share_initializers()
        kept: list[onnx.NodeProto] = []
        for node in self._graph.node:
            reread(node, self._instead)
            if self._idle.passes_on(node) and node.output[0] not in self._outputs:
                self._instead[node.output[0]] = node.input[0]
            elif not self._is_duplicate(node):
                kept.append(node)
        if len(kept) != len(self._graph.node):
            del self._graph.node[:]
            self._graph.node.extend(kept)

    def _share_initializers(self) -> None:
        given = {value.name for value in self._graph.input}
        first: dict[Key, str] = {}
        for tensor in self._graph.initializer:
            if tensor.name in self._outputs or tensor.name in given or not tensor.HasField("raw_data"):
                continue
            key = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(tensor.raw_data).digest())
            name = first.setdefault(key, tensor.name)
            if name != tensor.name:
                self._instead[tensor.name] = name

    def _is_duplicate(self, node: onnx.NodeProto) -> bool:
        if not standard(node) or node.op_type in RANDOM or has_subgraphs(node):
            return False
        if node.op_type == "Dropout":  # one that is training is random
            return False
        first = self._seen.setdefault(_key(node), node)
        if first is node or any(name in self._outputs for name in node.output):
            return False
        self._instead.update(pair for pair in zip(node.output, first.output, strict=True) if pair[0])
        return True


def _key(node: onnx.NodeProto) -> Key:
    """What two nodes that compute the same have in common: a node without names of its own."""
    attributes = sorted((one.name, one.type, one.SerializeToString(deterministic=True)) for one in node.attribute)
    shared = tuple(
        (name, kind, data if len(data) < 256 else hashlib.sha256(data).digest()) for name, kind, data in attributes
    )
    return (node.op_type, tuple(node.input), tuple(bool(name) for name in node.output), shared)


class _Idle:
    """Knows the nodes that give their first input as their first and only output that is read."""

    def __init__(self, graph: onnx.GraphProto, version: int) -> None:
        self._known = types(graph)
        self._constants = constants(graph)
        self._version = version
        self._read = {name for node in graph.node for name in (*node.input, *captured(node))}
        self._read.update(value.name for value in graph.output)

    def passes_on(self, node: onnx.NodeProto) -> bool:
        """Whether the node can be left out, and its first input read instead."""
        if not standard(node) or not node.input or not node.input[0] or not node.output or not node.output[0]:
            return False
        if any(name in self._read for name in node.output[1:] if name):
            return False
        given, made = node.input[0], node.output[0]
        match node.op_type:
            case "Identity":
                return True
            case "Dropout":
                return self._is_off(node)
            case "Sum" | "Max" | "Min" | "Mean" | "Concat":
                return len(node.input) == 1
            case "Cast":
                return bool(self._kind(given) == attribute(node, "to"))
            case "Transpose":
                order = attribute(node, "perm")
                return order is not None and list(order) == list(range(len(order)))
            case "Reshape" | "Flatten" | "Expand" | "Squeeze" | "Unsqueeze" | "Tile" | "Slice":
                sizes = self._sizes(given)
                return sizes is not None and sizes == self._sizes(made) and self._moves_nothing(node)
            case "Pad":
                return self._pads_nothing(node)
        return False

    def _kind(self, name: str) -> int | None:
        return self._known[name][0] if name in self._known else None

    def _sizes(self, name: str) -> Dims | None:
        """The sizes of a tensor where all are known."""
        dims = self._known[name][1] if name in self._known else None
        return None if dims is None or None in dims else dims

    def _is_off(self, node: onnx.NodeProto) -> bool:
        if self._version < _DROPOUT_FOR_INFERENCE:
            return bool(attribute(node, "is_test", 0))
        if self._version < _DROPOUT_WITH_MODE or len(node.input) < 3 or not node.input[2]:
            return True
        mode = self._constants.get(node.input[2])
        return mode is not None and not array_of(mode).any()

    def _moves_nothing(self, node: onnx.NodeProto) -> bool:
        """Slice may turn an axis around and keep its size; the others keep the order wherever they keep the sizes."""
        if node.op_type != "Slice" or len(node.input) < 5 or not node.input[4]:
            return True
        steps = self._constants.get(node.input[4])
        return steps is not None and bool((array_of(steps) > 0).all())

    def _pads_nothing(self, node: onnx.NodeProto) -> bool:
        pads = attribute(node, "pads", attribute(node, "paddings"))
        if pads is None and len(node.input) > 1 and node.input[1] in self._constants:
            pads = array_of(self._constants[node.input[1]])
        return pads is not None and not np.any(pads)


def _name_outputs(graph: onnx.GraphProto, version: int) -> None:
    """Where an idle node only gives an output its name, let the node before give it instead."""
    idle, outputs = _Idle(graph, version), {value.name for value in graph.output}
    makers = {name: node for node in graph.node for name in node.output if name}
    renamed: dict[str, str] = {}
    dropped: set[int] = set()
    for node in graph.node:
        made = node.output[0] if node.output else ""
        if made not in outputs or not idle.passes_on(node):
            continue
        given = node.input[0]
        if given in makers and given not in outputs and given not in renamed:
            renamed[given] = made
            dropped.add(id(node))
    if not renamed:
        return
    kept = [node for node in graph.node if id(node) not in dropped]
    for node in kept:
        reread(node, renamed)
        for i, name in enumerate(node.output):
            if name in renamed:
                node.output[i] = renamed[name]
    del graph.node[:]
    graph.node.extend(kept)
