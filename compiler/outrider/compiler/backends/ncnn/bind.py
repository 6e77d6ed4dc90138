"""An ONNX graph made ready for pnnx: every input's shape fixed, a row at a time; and what it then gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from outrider.compiler.backends.ncnn.rewrite import widen_reductions
from outrider.compiler.onnx_session import open_session
from outrider.compiler.passes.graph import inputs_of
from outrider.runtime.errors import BadModelError, UnsupportedError, UsageError

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BoundGraph:
    """An ONNX file whose inputs have fixed shapes with a batch of 1, float32 in and out.

    `inputs` and `outputs` are the shapes, with the batch axis, in the graph's order.
    """

    data: bytes
    inputs: tuple[tuple[str, Shape], ...]
    outputs: tuple[tuple[str, Shape], ...]


def bind(data: bytes, shapes: Mapping[str, Shape]) -> BoundGraph:
    """Fix the shapes of the inputs: those of `shapes`, by name with the batch axis, and what the graph fixes itself.

    Raises BadModelError where the file is no sound ONNX model, UsageError for shapes that do not fit it, and
    UnsupportedError for free dimensions that nothing binds and for tensors that are not float32.
    """
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as e:  # protobuf's classes are not the same in its two implementations
        raise BadModelError(f"the ONNX file cannot be read: {e}") from e
    inputs = inputs_of(model.graph)
    unknown = sorted(set(shapes) - {value.name for value in inputs})
    if unknown:
        raise UsageError(f"the model has no input {unknown[0]!r}")
    bound = tuple((value.name, _fix(value, shapes.get(value.name))) for value in inputs)
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    _refuse_wrong(model.graph.node)
    widen_reductions(model)
    fixed: bytes = model.SerializeToString()
    return BoundGraph(data=fixed, inputs=bound, outputs=_outputs(fixed, bound))


def _fix(value: Any, wanted: Shape | None) -> Shape:
    """Fix an input's shape, with a batch of 1."""
    import onnx

    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type != onnx.TensorProto.FLOAT:
        raise UnsupportedError(f"the input {value.name!r} is not a float32 tensor, which is all that ncnn takes here")
    if not kind.HasField("shape") and wanted is None:
        raise UnsupportedError(f"the input {value.name!r} has no shape", hint=f"bind it: --shape {value.name}=1,…")
    own = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    if wanted is not None and kind.HasField("shape") and not _fits(own[1:], wanted[1:]):
        raise UsageError(f"the shape {wanted} does not fit the input {value.name!r}")
    sizes = list(wanted) if wanted is not None else [1, *own[1:]] if own else []
    if not sizes:
        raise UnsupportedError(f"the input {value.name!r} has no batch axis")
    if None in sizes:
        free = ",".join("?" if size is None else str(size) for size in sizes)
        hint = f"bind it: --shape {value.name}={free}"
        raise UnsupportedError(f"ncnn needs every dimension of the input {value.name!r} fixed", hint=hint)
    fixed = (1, *(size for size in sizes[1:] if size is not None))
    del kind.shape.dim[:]
    for size in fixed:
        kind.shape.dim.add().dim_value = size
    return fixed


def _refuse_wrong(nodes: Iterable[Any]) -> None:
    """Refuse what converts, and then gives other numbers."""
    for node in nodes:
        if node.op_type == "AveragePool" and any(each.name == "ceil_mode" and each.i for each in node.attribute):
            raise UnsupportedError(
                f"ncnn averages the last windows of AveragePool with ceil_mode ({node.name}) otherwise"
            )


def _fits(own: list[int | None], wanted: Shape) -> bool:
    return len(own) == len(wanted) and all(size in (None, to) for size, to in zip(own, wanted, strict=True))


def _outputs(data: bytes, inputs: tuple[tuple[str, Shape], ...]) -> tuple[tuple[str, Shape], ...]:
    """What ONNX Runtime makes of inputs of zeros: shapes that inference does not always know."""
    try:
        session = open_session(data)
        values = session.run(None, {name: np.zeros(shape, np.float32) for name, shape in inputs})
        names = [value.name for value in session.get_outputs()]
    except Exception as e:  # the binding raises one class a status code, with no common base but Exception
        raise BadModelError(f"ONNX Runtime cannot run the model with a batch of 1: {e}") from e
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, np.ndarray) or value.dtype != np.float32:
            raise UnsupportedError(f"the output {name!r} is not a float32 tensor, which is all that ncnn gives here")
        if value.shape[:1] != (1,):
            raise UnsupportedError(f"the output {name!r} has no batch axis, or one that does not follow the inputs'")
        if 0 in value.shape:
            raise UnsupportedError(f"the output {name!r} is empty")
    return tuple((name, value.shape) for name, value in zip(names, values, strict=True))
