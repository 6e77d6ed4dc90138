"""Sizes: bind the free ones, and infer those of everything between inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from outrider.compiler.passes.graph import copied, graphs, inputs_of, types
from outrider.runtime.errors import BadInputError

if TYPE_CHECKING:
    import onnx

Sizes = Sequence[int | None]

_SMALL = 4096  # bytes up to which a weight may be a shape or the like


def bind(model: onnx.ModelProto, shapes: Mapping[str, Sizes]) -> onnx.ModelProto:
    """The model with the sizes of its inputs bound to those given by name; None leaves a size as it is.

    Where a size has a name (`batch`), all inputs and outputs that have a size of that name are bound with it. An input
    of which not even the number of sizes is known takes what is given.
    Raises BadInputError for an input that is not there, another number of sizes, a size below 1, one that contradicts
    a size that is fixed, and for two values of one name.
    """
    made = copied(model)
    inputs = {value.name: value for value in inputs_of(made.graph)}
    named: dict[str, tuple[int, str]] = {}
    for name, sizes in shapes.items():
        if name not in inputs:
            listed = ", ".join(repr(one) for one in inputs) or "none"
            raise BadInputError(f"the model has no input {name!r}", hint=f"its inputs: {listed}")
        _bind_one(inputs[name], tuple(sizes), named)
    for value in (*made.graph.input, *made.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in named:
                dim.dim_value = named[dim.dim_param][0]
    if any(size is not None for sizes in shapes.values() for size in sizes):
        for graph in graphs(made.graph):
            for value in graph.value_info:  # its sizes may be true of other ones only
                if value.type.HasField("tensor_type"):
                    value.type.tensor_type.ClearField("shape")
    annotate(made, outputs=True)
    return made


def _bind_one(value: Any, sizes: tuple[int | None, ...], named: dict[str, tuple[int, str]]) -> None:
    if not value.type.HasField("tensor_type"):
        raise BadInputError(f"the input {value.name!r} is no tensor and has no sizes")
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        tensor.shape.SetInParent()
        for _ in sizes:
            tensor.shape.dim.add()
    dims = tensor.shape.dim
    if len(dims) != len(sizes):
        raise BadInputError(
            f"the input {value.name!r} has {len(dims)} axes, {len(sizes)} sizes were given: {_text(sizes)}",
            hint=f"its shape: {_text([dim.dim_param or (dim.dim_value or None) for dim in dims])}",
        )
    for axis, (dim, size) in enumerate(zip(dims, sizes, strict=True)):
        if size is None:
            continue
        where = f"axis {axis} of the input {value.name!r}"
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise BadInputError(f"{where} cannot have the size {size!r}", hint="sizes are integers from 1")
        if dim.HasField("dim_value") and dim.dim_value != size:
            raise BadInputError(f"{where} is fixed at {dim.dim_value}, {size} was given")
        if dim.dim_param:
            other, first = named.setdefault(dim.dim_param, (size, where))
            if other != size:
                raise BadInputError(
                    f"{where} and {first} are both {dim.dim_param!r}, but {size} and {other} were given"
                )
        else:
            dim.dim_value = size


def _text(sizes: Sequence[Any]) -> str:
    return "x".join("?" if size is None else str(size) for size in sizes) or "none"


def infer(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types and sizes of what is between inputs and outputs, as far as ONNX can tell.

    The values of small integers are followed too, which is what reshapes hang on. What the file itself says of them
    stands only where nothing was found. Where inference fails as a whole (an operator that contradicts what is
    declared), the model comes back as it was.
    """
    made = copied(model)
    annotate(made)
    return made


def annotate(model: onnx.ModelProto, *, outputs: bool = False) -> None:
    """`infer` in place. outputs: give outputs the sizes that were found too, where they have free ones."""
    import onnx

    try:
        skeleton = _skeleton(model)
        inferred = onnx.shape_inference.infer_shapes(skeleton, check_type=False, strict_mode=False, data_prop=True)
    except Exception:  # of several kinds, of which some are not exported
        return
    for found, graph in zip(graphs(inferred.graph), graphs(model.graph), strict=True):
        new = {value.name: value for value in found.value_info}
        declared = [value for value in graph.value_info if value.name not in new]
        del graph.value_info[:]
        graph.value_info.extend((*new.values(), *declared))
    for found, value in zip(inferred.graph.output, model.graph.output, strict=True):
        if outputs:
            _refine(value, found)


def _skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the values of large weights, and without what it says itself of the sizes of its values."""
    import onnx

    made = onnx.ModelProto(ir_version=model.ir_version)
    made.opset_import.extend(model.opset_import)
    made.functions.extend(model.functions)
    made.graph.name = model.graph.name
    made.graph.node.extend(model.graph.node)
    made.graph.input.extend(model.graph.input)
    made.graph.output.extend(model.graph.output)
    made.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) <= _SMALL:
            made.graph.initializer.append(tensor)
        else:
            made.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    for graph in graphs(made.graph):
        del graph.value_info[:]
    return made


def _refine(value: onnx.ValueInfoProto, found: onnx.ValueInfoProto) -> None:
    """Take over what was found of an output: its type and sizes where it had none, and their numbers.

    Not the names of free sizes that inference makes up, such as `unk__0`.
    """
    if not value.type.WhichOneof("value"):
        value.type.CopyFrom(found.type)
        return
    if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
        value.type.CopyFrom(found.type)
    mine, theirs = value.type.tensor_type.shape.dim, found.type.tensor_type.shape.dim
    if len(mine) == len(theirs):
        for dim, other in zip(mine, theirs, strict=True):
            if other.HasField("dim_value") and not dim.HasField("dim_value"):
                dim.dim_value = other.dim_value


def free_sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The inputs that have free sizes, each with the axes that are free; no axes where even their number is free."""
    known = types(model.graph)
    found: dict[str, tuple[int, ...]] = {}
    for value in inputs_of(model.graph):
        if value.name not in known:
            continue
        dims = known[value.name][1]
        axes = tuple(axis for axis, size in enumerate(dims or ()) if size is None)
        if dims is None or axes:
            found[value.name] = axes
    return found
