"""How many operations a net takes: counted from its ONNX graph, so that a rate can be held against the core's peak."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from outrider.runtime.errors import BadModelError

if TYPE_CHECKING:
    import onnx

Shapes = Mapping[str, tuple[int, ...]]


def count_flops(data: bytes, shapes: Shapes) -> int:
    """Operations of one call on inputs of these shapes: 2 for each multiply-and-add of the operators in `COUNTED`.

    What is element by element, such as an activation, is not counted: of all nets here it is below a few percent.
    Raises BadModelError where a shape that decides cannot be inferred.
    """
    import onnx

    model = onnx.load_from_string(data)
    for value in model.graph.input:
        if value.name in shapes:
            for axis, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
                axis.Clear()
                axis.dim_value = size
    _free_outputs(model)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    known = _shapes(model.graph)
    try:
        return sum(COUNTED[node.op_type](node, known) for node in model.graph.node if node.op_type in COUNTED)
    except KeyError as e:
        raise BadModelError(f"the shape of {e.args[0]!r} cannot be inferred, so operations cannot be counted") from e


def _free_outputs(model: onnx.ModelProto) -> None:
    """Forget the shapes that the file states for what depends on its inputs' free sizes."""
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        axes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(axis.HasField("dim_value") for axis in axes):
            found[value.name] = tuple(axis.dim_value for axis in axes)
    return found


def _conv(node: onnx.NodeProto, known: Shapes) -> int:
    """Each output pixel takes a whole filter: [out, in / groups, ...]."""
    return 2 * prod(known[node.output[0]]) * prod(known[node.input[1]][1:])


def _transposed(node: onnx.NodeProto, known: Shapes) -> int:
    """Each input pixel goes through a whole filter: [in, out / groups, ...]."""
    return 2 * prod(known[node.input[0]]) * prod(known[node.input[1]][1:])


def _gemm(node: onnx.NodeProto, known: Shapes) -> int:
    attributes = {one.name: one.i for one in node.attribute}
    inner = known[node.input[0]][0 if attributes.get("transA") else 1]
    return 2 * prod(known[node.output[0]]) * inner


def _matmul(node: onnx.NodeProto, known: Shapes) -> int:
    return 2 * prod(known[node.output[0]]) * known[node.input[0]][-1]


def _recurrent(gates: int) -> Callable[[Any, Shapes], int]:
    def counted(node: onnx.NodeProto, known: Shapes) -> int:
        """Of each step, direction and row: all gates of the input and of the state. W is [directions, gates h, in]."""
        steps, rows = known[node.input[0]][:2]
        directions, width, inputs = known[node.input[1]]
        return 2 * steps * rows * directions * width * (inputs + width // gates)

    return counted


#: Operator -> its operations.
COUNTED: dict[str, Callable[[Any, Shapes], int]] = {
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "RNN": _recurrent(1),
}
