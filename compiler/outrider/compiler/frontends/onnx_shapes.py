"""The tensors that an ONNX graph takes and gives: their types, their free sizes, and whether it is batched.

Files say little of it that can be relied on: exporters leave shapes of outputs out or write them wrong, and an axis 0
of a free size may count rows, steps of time or nothing at all. So the graph is run, on the caller's own arrays where
there are any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from outrider.compiler.frontends.onnx_refusal import refusal
from outrider.compiler.model import Array, Reference
from outrider.compiler.samples import random_inputs
from outrider.runtime.bundle.manifest import Dtype, TensorSpec
from outrider.runtime.calls import one_call
from outrider.runtime.errors import BadModelError, UnsupportedError
from outrider.runtime.tolerance import Tolerance, compare

if TYPE_CHECKING:
    import onnx

_DTYPES: dict[str, Dtype] = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "FLOAT16": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT16": "int16",
    "UINT16": "uint16",
    "INT32": "int32",
    "UINT32": "uint32",
    "INT64": "int64",
    "UINT64": "uint64",
    "BOOL": "bool",
    "STRING": "string",
}
Sizes = Mapping[str, tuple[int, ...]]

_ROWS = 3  # of the run that shows whether rows bear on one another
_SAME_ROW = Tolerance(atol=1e-6, rtol=1e-3, of_max=1e-3)
# Operators after which the size of a result may depend on values.
_BY_DATA = frozenset(
    ("NonZero", "NonMaxSuppression", "Unique", "Compress", "Loop", "If", "Scan", "StringSplit", "TopK")
)


@dataclass(frozen=True)
class Tensors:
    """What a graph takes and gives. `sizes`: the shape of a call by input, where more is free than rows."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    sizes: Sizes


def input_specs(graph: onnx.GraphProto) -> tuple[TensorSpec, ...]:
    """The inputs as the file declares them.

    Raises UnsupportedError for what is no tensor, or of another type, BadModelError where there is no shape.
    """
    specs = tuple(_spec(value) for value in graph.input)
    for value in graph.input:
        if not value.type.tensor_type.HasField("shape"):
            raise BadModelError(
                f"the ONNX input {value.name!r} has no shape", hint=f"bind it: --shape {value.name}=n,3,64,64"
            )
    return specs


def check_types(graph: onnx.GraphProto) -> None:
    """Raises UnsupportedError for an input or output that is no tensor, or of a type that no signature has."""
    for value in (*graph.input, *graph.output):
        _dtype(value)


def find_tensors(
    graph: onnx.GraphProto,
    inferred: Mapping[str, Sequence[Any]],
    run: Reference,
    examples: Mapping[str | None, Array],
) -> Tensors:
    """Run the graph to see what it gives.

    `inferred`: shapes of outputs as ONNX Runtime infers them; a size that is no number is not known. `examples`: arrays
    of calibration by input, or the one under None.
    Raises UnsupportedError for types that no signature has and where the graph does not run, BadModelError for free
    sizes that nothing binds.
    """
    given = input_specs(graph)
    dtypes = {value.name: _dtype(value) for value in graph.output}
    own = _own_examples(given, examples)
    if all(spec.shape and spec.shape[0] is None for spec in given):
        sizes = _sizes(given, own, batched=True)
        rows = _rows(given, sizes, own)
        if (found := _run_rows(run, rows)) is not None:
            varying = any(node.op_type in _BY_DATA for node in graph.node)
            beyond = varying or any(None in spec.shape[1:] for spec in given)
            outputs = tuple(
                TensorSpec(name=name, dtype=dtypes[name], shape=(None, *_shape(array, inferred[name], beyond)[1:]))
                for name, array in found.items()
            )
            return Tensors(given, outputs, True, sizes)
    sizes = _sizes(given, own, batched=False)
    call = _call(given, sizes, own)
    try:
        found = run(call)
    except Exception as e:  # ONNX Runtime raises one class a status code, with no common base but Exception
        raise refusal(str(e), graph) from e
    beyond = any(None in spec.shape for spec in given) or any(node.op_type in _BY_DATA for node in graph.node)
    outputs = tuple(
        TensorSpec(name=name, dtype=dtypes[name], shape=_shape(array, inferred[name], beyond))
        for name, array in found.items()
    )
    return Tensors(given, outputs, False, sizes)


def _own_examples(specs: Sequence[TensorSpec], examples: Mapping[str | None, Array]) -> dict[str, Array]:
    """The arrays for these inputs that can be such; whether they fit is seen later, where samples are made."""
    if None in examples and len(specs) == 1:
        examples = {specs[0].name: examples[None]}
    found = {spec.name: (examples[spec.name], spec) for spec in specs if spec.name in examples}
    return {name: array for name, (array, spec) in found.items() if _can_be(array, spec)}


def _can_be(array: Array, spec: TensorSpec) -> bool:
    """Whether an array holds values of the input's kind, and is a call, rows or calls of it."""
    kinds = "UO" if spec.dtype == "string" else "fiub"
    return array.dtype.kind in kinds and array.ndim - len(spec.shape) in (0, 1)


def _sizes(specs: Sequence[TensorSpec], own: Mapping[str, Array], *, batched: bool) -> dict[str, tuple[int, ...]]:
    """The shape of a call by input: as of the example, else as the file says. Of a batched model it is one row.

    Raises BadModelError where an axis other than the first is free, and there is no example.
    """
    found: dict[str, tuple[int, ...]] = {}
    for spec in specs:
        shape = own[spec.name].shape if spec.name in own else ()
        if batched:
            shape = (1, *shape[1:])
        elif len(shape) == len(spec.shape) + 1:
            shape = shape[1:]
        fits = len(shape) == len(spec.shape)
        if not fits and None in spec.shape[1:]:
            axis = spec.shape.index(None, 1)
            raise BadModelError(
                f"the size of axis {axis} of the ONNX input {spec.name!r} is free, and nothing says what it can be",
                hint=f"give calibration, or bind it: --shape {spec.name}={_example_shape(spec)}",
            )
        sizes = shape if fits else (None,) * len(spec.shape)
        pairs = zip(spec.shape, sizes, strict=True)
        found[spec.name] = tuple((1 if size is None else size) if known is None else known for known, size in pairs)
    return found


def _example_shape(spec: TensorSpec) -> str:
    return ",".join(str(size or ("n" if axis == 0 else 64)) for axis, size in enumerate(spec.shape))


def _rows(specs: Sequence[TensorSpec], sizes: Sizes, own: Mapping[str, Array]) -> dict[str, Array]:
    """A few rows: the example's own where they fit, again and again where there are fewer; else random ones."""
    rows = random_inputs(tuple(specs), _ROWS, sizes=sizes)
    examples = [(own[spec.name], sizes[spec.name]) for spec in specs if spec.name in own]
    if len(examples) == len(specs) and all(len(one) > 0 and one.shape[1:] == size[1:] for one, size in examples):
        rows = {spec.name: _cast(_first(own[spec.name]), spec) for spec in specs}
    return rows


def _first(array: Array) -> Array:
    return array[np.arange(_ROWS) % len(array)]


def _call(specs: Sequence[TensorSpec], sizes: Sizes, own: Mapping[str, Array]) -> dict[str, Array]:
    """A whole call: the example's own where it fits, else a random one."""
    call = one_call(random_inputs(tuple(specs), 1, batched=False, sizes=sizes), 0, batched=False)
    for spec in specs:
        example = own.get(spec.name)
        if example is None or example.ndim < len(spec.shape):
            continue
        axes = example.ndim - len(spec.shape)  # in front, which count calls
        if example.shape[axes:] == sizes[spec.name] and 0 not in example.shape[:axes]:
            for _ in range(axes):
                example = np.asarray(example[0])
            call[spec.name] = _cast(example, spec)
    return call


def _cast(array: Array, spec: TensorSpec) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(array, object if spec.dtype == "string" else np.dtype(spec.dtype)).reshape(
            array.shape
        )


def _run_rows(run: Reference, rows: dict[str, Array]) -> dict[str, Array] | None:
    """The outputs for these rows; None where the graph does not take them, or gives others for each by itself."""
    count = len(next(iter(rows.values())))
    try:
        found = run(rows)
        if any(array.ndim == 0 or len(array) != count for array in found.values()):
            return None
        singles = [run(one_call(rows, row, batched=True)) for row in range(count)]
        together = {name: np.concatenate([single[name] for single in singles]) for name in found}
    except Exception:  # as above; sizes that differ from row to row do not concatenate
        return None
    return None if compare(together, found, _SAME_ROW).problems else found


def _shape(array: Array, inferred: Sequence[Any], beyond: bool) -> tuple[int | None, ...]:
    """The shape that was found; where more is free than rows, sizes that could not be inferred stay free.

    So does a size of 0, as it does in inputs: files write it for sizes that they do not know.
    """
    known = inferred if len(inferred) == array.ndim else (None,) * array.ndim
    known = known if beyond else array.shape
    return tuple(size if size and size == told else None for size, told in zip(array.shape, known, strict=True))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    return TensorSpec(name=value.name, dtype=_dtype(value), shape=_dimensions(value))


def _dimensions(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    if not value.type.HasField("tensor_type"):
        raise UnsupportedError(
            f"{value.name!r} of the ONNX model is not a tensor", hint="scikit-learn: export with zipmap=False"
        )
    return tuple(d.dim_value if d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim)


def _dtype(value: onnx.ValueInfoProto) -> Dtype:
    import onnx

    _dimensions(value)
    name = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    dtype = _DTYPES.get(name)
    if dtype is None:
        raise UnsupportedError(f"{value.name!r} of the ONNX model has the type {name}, which is not supported")
    return dtype
