"""What passes share: copies to work on, names and who reads them, constants, subgraphs.

The nodes of If, Loop and Scan hold graphs of their own, which read names of the graphs around them (they *capture*
them). Nothing that a subgraph reads may be renamed or removed without looking there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import BadModelError

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]

# What gives other values each time, or might: never computed ahead, never shared between two nodes.
RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)

_IR_WITH_FREE_INITIALISERS = 4  # from here on, an initialiser need not be an input as well


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy to work on, in which no initialiser is listed as an input that could not be overridden anyway."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    if made.ir_version < _IR_WITH_FREE_INITIALISERS:
        held = {tensor.name for tensor in made.graph.initializer}
        keep([*made.graph.input], made.graph.input, lambda value: value.name not in held)
        made.ir_version = _IR_WITH_FREE_INITIALISERS
    return made


def keep(items: list[Any], field: Any, wanted: Any) -> None:
    """Leave in a repeated field only those of its items that are wanted."""
    chosen = [item for item in items if wanted(item)]
    if len(chosen) != len(items):
        del field[:]
        field.extend(chosen)


def standard(node: onnx.NodeProto, *kinds: str) -> bool:
    """Whether a node is an operator of ONNX itself, and one of these where any are named."""
    return node.domain in ("", "ai.onnx") and (not kinds or node.op_type in kinds)


def opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's operators that the model uses; 0 where it uses none of them."""
    return next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value as a Python object."""
    import onnx

    for one in node.attribute:
        if one.name == name:
            return onnx.helper.get_attribute_value(one)
    return default


def inputs_of(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller must give: those that no initialiser stands for."""
    held = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in held]


# Graphs within graphs -----------------------------------------------------------------------------------------------


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node holds."""
    for one in node.attribute:
        if one.HasField("g"):
            yield one.g
        yield from one.graphs


def has_subgraphs(node: onnx.NodeProto) -> bool:
    """Whether a node holds graphs."""
    return any(True for _ in subgraphs(node))


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all within it, from the outside in."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs(inner)


def defined(graph: onnx.GraphProto) -> set[str]:
    """The names that a graph itself gives to values, those of graphs within it left out."""
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    names.update(tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        names.update(node.output)
    return names


def captured(node: onnx.NodeProto) -> set[str]:
    """The names that a node's subgraphs read from outside."""
    names: set[str] = set()
    if not node.attribute:  # as of most nodes
        return names
    for inner in subgraphs(node):
        read = {value.name for value in inner.output}
        for one in inner.node:
            read.update(one.input)
            read |= captured(one)
        names |= read - defined(inner)
    return names - {""}


def uses(graph: onnx.GraphProto) -> Counter[str]:
    """How often each name is read: by nodes, by subgraphs (once a node), as an output of the graph."""
    count: Counter[str] = Counter(value.name for value in graph.output)
    for node in graph.node:
        count.update(name for name in node.input if name)
        count.update(captured(node))
    return count


def reread(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Let a node, and the graphs within it, read other names instead."""
    if not names:
        return
    for i, name in enumerate(node.input):
        if name in names:
            node.input[i] = names[name]
    for inner in subgraphs(node):
        own = defined(inner)
        outer = {old: new for old, new in names.items() if old not in own} if own & names.keys() else names
        for one in inner.node:
            reread(one, outer)
        for value in inner.output:
            value.name = outer.get(value.name, value.name)


class Names:
    """Gives out names that the model does not have yet."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._taken: set[str] = set()
        for graph in graphs(model.graph):
            self._taken |= defined(graph)
            self._taken.update(node.name for node in graph.node)

    def fresh(self, wish: str) -> str:
        """The wish itself where it is free, else with a number behind it."""
        name, number = wish, 1
        while name in self._taken:
            number += 1
            name = f"{wish}_{number}"
        self._taken.add(name)
        return name


# Constants ----------------------------------------------------------------------------------------------------------


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor's values are in another file, and were not read."""
    import onnx

    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def need_values(model: onnx.ModelProto) -> None:
    """Raises BadModelError where weights are in another file, and were not read."""
    for graph in graphs(model.graph):
        for tensor in graph.initializer:
            if is_external(tensor):
                raise BadModelError(
                    f"the weight {tensor.name!r} is in another file, which was not read with the model",
                    hint="read the model with its external data",
                )


def constant_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The value of a Constant node, under its output's name; None for other nodes, and for a sparse value."""
    import onnx

    if not standard(node, "Constant") or not node.attribute:
        return None
    given = node.attribute[0]
    made = onnx.TensorProto()
    if given.name == "value":
        made.CopyFrom(given.t)
    elif given.name in ("value_float", "value_floats"):
        value = onnx.helper.get_attribute_value(given)
        made = onnx.numpy_helper.from_array(np.asarray(value, np.float32))
    elif given.name in ("value_int", "value_ints"):
        value = onnx.helper.get_attribute_value(given)
        made = onnx.numpy_helper.from_array(np.asarray(value, np.int64))
    else:
        return None
    made.name = node.output[0]
    return made


def constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The graph's own constants whose values are at hand: initialisers that nobody can override, Constant nodes."""
    given = {value.name for value in graph.input}
    known = {one.name: one for one in graph.initializer if one.name not in given and not is_external(one)}
    for node in graph.node:
        tensor = constant_of(node)
        if tensor is not None and not is_external(tensor):
            known[tensor.name] = tensor
    return known


def array_of(tensor: onnx.TensorProto) -> Array:
    """A tensor's values. Raises BadModelError where it does not hold as many as its shape says."""
    import onnx

    try:
        values: Array = onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as e:
        raise BadModelError(f"the tensor {tensor.name!r} cannot be read: {e}") from e
    return values


def tensor_of(values: Array, name: str) -> onnx.TensorProto:
    """Values as a tensor."""
    import onnx

    made: onnx.TensorProto = onnx.numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), name)
    return made


# Types --------------------------------------------------------------------------------------------------------------

Dims = tuple[int | None, ...]


def types(graph: onnx.GraphProto) -> dict[str, tuple[int, Dims | None]]:
    """Of each tensor whose type is known: its TensorProto.DataType, and its sizes, None where one is free."""
    known: dict[str, tuple[int, Dims | None]] = {}
    for value in (*graph.value_info, *graph.output, *graph.input):
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type:
            known[value.name] = (value.type.tensor_type.elem_type, dims_of(value))
    for tensor in graph.initializer:
        known[tensor.name] = (tensor.data_type, tuple(tensor.dims))
    return known


def dims_of(value: onnx.ValueInfoProto) -> Dims | None:
    """The sizes of a tensor, None for each that is free; None altogether where not even their number is known."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)


def drop_unknown_types(graph: onnx.GraphProto) -> None:
    """Forget the types of values that are no longer there."""
    names = defined(graph)
    keep([*graph.value_info], graph.value_info, lambda value: value.name in names)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove, from the inside out, nodes that nothing comes of, initialisers that nothing reads, and their types.

    Inputs and outputs stay.
    """
    live = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if not any(name in live for name in node.output):
            continue
        for inner in subgraphs(node):
            drop_unused(inner)
        live.update(node.input)
        live |= captured(node)
        kept.append(node)
    if len(kept) != len(graph.node):
        made = list(reversed(kept))
        del graph.node[:]
        graph.node.extend(made)
    keep([*graph.initializer], graph.initializer, lambda tensor: tensor.name in live)
    drop_unknown_types(graph)


__all__ = [
    "RANDOM",
    "Array",
    "Dims",
    "Names",
    "array_of",
    "attribute",
    "captured",
    "constant_of",
    "constants",
    "copied",
    "defined",
    "dims_of",
    "drop_unknown_types",
    "drop_unused",
    "graphs",
    "has_subgraphs",
    "inputs_of",
    "is_external",
    "keep",
    "need_values",
    "opset",
    "reread",
    "standard",
    "subgraphs",
    "tensor_of",
    "types",
    "uses",
]
