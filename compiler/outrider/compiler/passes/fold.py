"""Compute ahead what depends on constants only.

Each node is run by ONNX Runtime, by itself, with its constants; so a value is what the device would have computed, a
node that fails stays, and no more than one result is held beside the model.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from outrider.compiler.onnx_session import open_session
from outrider.compiler.passes.graph import (
    RANDOM,
    Array,
    array_of,
    attribute,
    captured,
    constant_of,
    constants,
    copied,
    drop_unused,
    has_subgraphs,
    standard,
    subgraphs,
    tensor_of,
    types,
    uses,
)
from outrider.compiler.passes.shapes import annotate

if TYPE_CHECKING:
    import onnx

GROWTH = 8 << 20  # bytes by which all folding may make a model larger

# Folded, weights that were quantised would be floats again.
_KEPT = RANDOM | {"Constant", "Dropout", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
_SMALL = 1024  # values up to which a constant may say what the sizes of the result are

_Scope = MutableMapping[str, "onnx.TensorProto"]


def fold(model: onnx.ModelProto, *, growth: int = GROWTH) -> onnx.ModelProto:
    """The model with constants for what depends on constants only, or on sizes that are fixed.

    growth: bytes that the model may gain in all. What would go beyond stays a node. Random operators stay, and those
    that turn quantised weights into floats.
    """
    made = copied(model)
    annotate(made)
    folder = _Folder(made, growth)
    folder.graph(made.graph, {})
    drop_unused(made.graph)
    return made


@dataclass
class _Folder:
    model: onnx.ModelProto
    left: int  # bytes that the model may still gain

    def graph(self, graph: onnx.GraphProto, outer: _Scope) -> None:
        """Fold the nodes of a graph, and of those within it, which see the constants around them."""
        own = constants(graph)
        known = ChainMap(own, outer)
        kinds, count = types(graph), uses(graph)
        outputs = {value.name for value in graph.output}
        new: dict[str, onnx.TensorProto] = {}

        def last_use(name: str) -> bool:
            return name in own and count[name] == 1

        kept: list[onnx.NodeProto] = []
        for node in graph.node:
            for inner in subgraphs(node):
                self.graph(inner, known)
            results = self._fixed_sizes(node, kinds)
            if results is None:
                results = self._results(node, known, last_use)
            if results is None and constant_of(node) is not None:
                results = [known[node.output[0]]] if node.output[0] in known else None
            if results is None:
                kept.append(node)
                continue
            for name, tensor in zip(node.output, results, strict=True):
                if name:
                    tensor.name = name
                    known[name] = new[name] = tensor
                    if name in outputs:
                        kept.append(_constant(tensor))
                        del new[name]
        if len(kept) != len(graph.node) or new:
            del graph.node[:]
            graph.node.extend(kept)
        read = {name for node in kept for name in (*node.input, *captured(node))}
        graph.initializer.extend(tensor for name, tensor in new.items() if name in read)

    def _fixed_sizes(
        self, node: onnx.NodeProto, kinds: Mapping[str, tuple[int, tuple[int | None, ...] | None]]
    ) -> list[onnx.TensorProto] | None:
        """What Shape and Size give where the sizes in question are known."""
        if not standard(node, "Shape", "Size") or node.input[0] not in kinds:
            return None
        dims = kinds[node.input[0]][1]
        if dims is None:
            return None
        if node.op_type == "Shape":
            dims = dims[attribute(node, "start", 0) : attribute(node, "end", len(dims))]
        if None in dims:
            return None
        values = np.array(dims, np.int64)
        return [tensor_of(values if node.op_type == "Shape" else np.asarray(np.prod(values), np.int64), node.output[0])]

    def _results(
        self, node: onnx.NodeProto, known: _Scope, last_use: Callable[[str], bool]
    ) -> list[onnx.TensorProto] | None:
        """A node's outputs, where it can be computed and the model does not grow too large by them."""
        given = {name: known[name] for name in node.input if name in known}
        wanted = {name for name in node.input if name}
        if not standard(node) or node.op_type in _KEPT or wanted != given.keys() or has_subgraphs(node):
            return None
        freed = sum(_bytes(tensor) for name, tensor in given.items() if last_use(name))
        arrays = {name: array_of(tensor) for name, tensor in given.items()}
        allowed = self.left + freed
        if _least_bytes(self.model, node, arrays) > allowed:
            return None
        values = run_alone(self.model, node, arrays)
        if values is None:
            return None
        tensors = [tensor_of(value, name) for value, name in zip(values, node.output, strict=True)]
        grown = sum(_bytes(tensor) for tensor in tensors) - freed
        if grown > self.left:
            return None
        self.left -= grown
        return tensors


def _bytes(tensor: onnx.TensorProto) -> int:
    return len(tensor.raw_data) or int(tensor.ByteSize())


def _constant(tensor: onnx.TensorProto) -> onnx.NodeProto:
    """A node for a constant that is an output, which not every engine takes from an initialiser."""
    import onnx

    node = onnx.helper.make_node("Constant", [], [tensor.name], name=tensor.name)
    value = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    value.t.CopyFrom(tensor)
    return node


def _single(model: onnx.ModelProto, node: onnx.NodeProto, arrays: Mapping[str, Array], held: Sequence[str]) -> Any:
    """A model of one node. The constants in `held` are in it, the others are its inputs."""
    import onnx

    made = onnx.ModelProto(ir_version=model.ir_version)
    made.opset_import.extend(model.opset_import)
    made.graph.name = "one"
    made.graph.node.append(node)
    for name, values in arrays.items():
        if name in held:
            made.graph.initializer.append(tensor_of(values, name))
        else:
            kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            made.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, values.shape))
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
    return made


def _least_bytes(model: onnx.ModelProto, node: onnx.NodeProto, arrays: Mapping[str, Array]) -> int:
    """The size of a node's outputs as far as it is known before it runs."""
    import onnx

    small = [name for name, values in arrays.items() if values.size <= _SMALL and values.dtype.kind in "iu"]
    try:
        inferred = onnx.shape_inference.infer_shapes(_single(model, node, arrays, small), data_prop=True)
        known = types(inferred.graph)
        total = 0
        for name in node.output:
            kind, dims = known.get(name, (onnx.TensorProto.FLOAT, None))
            if dims is not None and None not in dims:
                width = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize
                total += width * int(np.prod([float(size or 0) for size in dims]))
    except Exception:  # of several kinds; running the node will tell
        return 0
    return total


def run_alone(model: onnx.ModelProto, node: onnx.NodeProto, arrays: Mapping[str, Array]) -> list[Array] | None:
    """A node's outputs for these inputs; None where ONNX Runtime cannot run it, or they are no tensors."""
    try:
        session = open_session(_single(model, node, arrays, ()).SerializeToString(), as_written=True)
        found = session.run(None, dict(arrays))
    except Exception:  # of many kinds, some not exported: an operator without a kernel, sizes that do not fit
        return None
    if not all(isinstance(value, np.ndarray) for value in found):
        return None
    made, values = iter(found), []
    for name in node.output:
        values.append(next(made) if name else np.zeros(0, np.float32))
    return values
