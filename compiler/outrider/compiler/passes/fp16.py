"""Floats of 32 bits -> floats of 16 bits, inside; inputs and outputs stay as they are.

Every value keeps its name for its float32 form; the float16 form is another value. So what stays in float32 (nodes
that are unsafe or have no float16 form, graphs within If, Loop and Scan, outputs) reads on as before, and a Cast is
written only where one form is made and the other is read.

    x ──Cast──▶ x_half ──Conv──▶ y_half ──Cast──▶ y ──Softmax──▶ z
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from outrider.compiler.passes.graph import (
    Array,
    Names,
    array_of,
    captured,
    constant_of,
    copied,
    drop_unused,
    has_subgraphs,
    need_values,
    opset,
    standard,
    tensor_of,
    types,
)
from outrider.compiler.passes.shapes import annotate
from outrider.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx

FLOAT, HALF = 1, 10  # of TensorProto.DataType
LARGEST = 65504.0  # the largest finite number of float16
_TINIEST = 2.0**-24  # the smallest above 0
_STANDS_FOR_INFINITY = 1e38  # exporters mask with the end of float32's range

# Sums and squares of many values, powers, places on an axis and coordinates: too large or too fine for float16. Casts
# say a type themselves; quantised weights have scales in float32; ONNX Runtime has no float16 to scatter sums with.
UNSAFE = frozenset(
    (
        *("ReduceSum", "ReduceSumSquare", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp"),
        *("CumSum", "Range", "TopK", "NonMaxSuppression", "RoiAlign", "MaxRoiPool", "GridSample", "Resize", "Upsample"),
        *("Exp", "Log", "Pow", "Softplus", "Sin", "Cos", "Tan", "Reciprocal", "LRN", "LpNormalization", "LpPool"),
        *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "MeanVarianceNormalization"),
        *("RMSNormalization", "BatchNormalization", "Softmax", "LogSoftmax", "CastLike", "Cast"),
        *(
            "ScatterElements",
            "ScatterND",
            "SoftmaxCrossEntropyLoss",
            "NegativeLogLikelihoodLoss",
            "Dropout",
            "Optional",
            "SequenceConstruct",
        ),
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"),
        *("DFT", "STFT", "MelWeightMatrix", "Einsum", "Det", "Constant", "BitCast"),
    )
)


def fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float16 weights and activations, wherever that is safe; inputs and outputs keep their types.

    Weights near the end of float32's range stand for infinity and become the end of float16's; those too small for
    float16 become its smallest number, so that what is divided by them stays finite.
    Raises UnsupportedError where another weight is too large for float16.
    """
    need_values(model)
    made = copied(model)
    if made.functions:
        from onnx import inliner

        made = inliner.inline_local_functions(made)
    annotate(made)
    _Halving(made).run()
    drop_unused(made.graph)
    return made


class _Halving:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph, self._version = model.graph, opset(model)
        self._names = Names(model)
        self._given = {value.name for value in self._graph.input}
        self._weights = {one.name: one for one in self._graph.initializer if one.data_type == FLOAT}
        known = types(self._graph)
        self._known = set(known)
        self._floats = {name for name, (kind, _) in known.items() if kind == FLOAT}
        self._take_in_constants()
        self._half: dict[str, str] = {}  # a value -> the name of its float16 form, where it is there by now
        self._only_half: set[str] = set()  # values that have no float32 form so far
        self._made: list[onnx.NodeProto] = []

    def _take_in_constants(self) -> None:
        """Know the values of Constant nodes, too."""
        for node in self._graph.node:
            tensor = constant_of(node)
            if tensor is None:
                continue
            self._known.add(tensor.name)
            if tensor.data_type == FLOAT:
                self._floats.add(tensor.name)
                self._weights[tensor.name] = tensor

    def run(self) -> None:
        for node in self._graph.node:
            places = self._places(node)
            if places is None:
                self._as_before(node)
            else:
                self._halved(node, *places)
        for value in self._graph.output:
            self._need_float(value.name)
        del self._graph.node[:]
        self._graph.node.extend(self._made)

    def _places(self, node: onnx.NodeProto) -> tuple[list[int], list[int]] | None:
        """Which inputs and outputs of a node become float16; None where it stays as it is."""
        if not standard(node) or node.op_type in UNSAFE or has_subgraphs(node):
            return None
        if any(name not in self._known for name in (*node.input, *node.output) if name):
            return None  # it might be a float32
        signature = _signature(node.op_type, self._version)
        if signature is None:
            return None
        given = self._variables(node.input, signature[0])
        made = self._variables(node.output, signature[1])
        if given is None or made is None:
            return None
        inputs = [(place, variable) for place, variable in given if variable]
        tied = {variable for _, variable in inputs}
        # An output whose type does not follow from an input's is made by an attribute.
        if not inputs or any(variable not in tied for _, variable in made):
            return None
        return [place for place, _ in inputs], [place for place, _ in made]

    def _variables(self, names: Any, formal: list[tuple[str, bool, bool]]) -> list[tuple[int, str]] | None:
        """The places of float32 values, each with its type's variable, empty where the type is fixed at float32.

        None where a variable cannot be float16, or a place is not described.
        """
        found = []
        for place, name in enumerate(names):
            if name not in self._floats:
                continue
            at = min(place, len(formal) - 1)
            if at < 0 or (place != at and formal[at][2] is False):
                return None
            variable, takes_half, _ = formal[at]
            if not takes_half and variable:
                return None
            found.append((place, variable))
        return found

    def _as_before(self, node: onnx.NodeProto) -> None:
        for name in (*node.input, *captured(node)):
            self._need_float(name)
        self._made.append(node)

    def _halved(self, node: onnx.NodeProto, inputs: list[int], outputs: list[int]) -> None:
        for place, name in enumerate(node.input):
            if place in inputs:
                node.input[place] = self._need_half(name)
            else:
                self._need_float(name)
        for place in outputs:
            name = node.output[place]
            self._half[name] = node.output[place] = self._names.fresh(f"{name}_half")
            self._only_half.add(name)
        self._made.append(node)

    def _need_float(self, name: str) -> None:
        """Make the float32 form of a value that is there in float16 only."""
        if name in self._only_half:
            self._only_half.discard(name)
            self._cast(self._half[name], name, FLOAT)

    def _need_half(self, name: str) -> str:
        """The float16 form of a value, made where it is not there yet."""
        if name in self._half:
            return self._half[name]
        half = self._half[name] = self._names.fresh(f"{name}_half")
        if name in self._weights and name not in self._given:
            self._graph.initializer.append(tensor_of(halves(array_of(self._weights[name]), name), half))
        else:
            self._cast(name, half, HALF)
        return half

    def _cast(self, given: str, made: str, kind: int) -> None:
        import onnx

        self._made.append(
            onnx.helper.make_node("Cast", [given], [made], name=self._names.fresh(f"{made}_cast"), to=kind)
        )


def _signature(kind: str, version: int) -> tuple[list[tuple[str, bool, bool]], list[tuple[str, bool, bool]]] | None:
    """The inputs and outputs of an operator: type variable (empty: fixed), whether it may be float16, whether repeated.

    None for operators that are not known, and repetitions whose types may differ.
    """
    import onnx

    try:
        schema = onnx.defs.get_schema(kind, version)
    except onnx.defs.SchemaError:
        return None
    halves_allowed: Mapping[str, bool] = {
        one.type_param_str: "tensor(float16)" in one.allowed_type_strs for one in schema.type_constraints
    }
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    sides = []
    for side in (schema.inputs, schema.outputs):
        rows = []
        for one in side:
            repeated = one.option == variadic
            if repeated and not one.is_homogeneous:
                return None
            variable = one.type_str if one.type_str in halves_allowed else ""
            rows.append((variable, halves_allowed.get(variable, False), repeated))
        sides.append(rows)
    return sides[0], sides[1]


def halves(values: Array, name: str) -> Array:
    """Float32 values as float16, any shape. Raises UnsupportedError for those that are too large."""
    values = np.asarray(values)
    with np.errstate(over="ignore"):
        made = values.astype(np.float16)
    over = np.isinf(made) & np.isfinite(values)
    if over.any():
        beyond = values[over]
        if (np.abs(beyond) < _STANDS_FOR_INFINITY).any():
            worst = float(beyond[np.argmax(np.where(np.abs(beyond) < _STANDS_FOR_INFINITY, np.abs(beyond), 0))])
            raise UnsupportedError(
                f"the weight {name!r} holds {worst:g}, and float16 ends at {LARGEST:g}",
                hint="compile the model in float32 or int8",
            )
        made[over] = np.copysign(LARGEST, beyond)
    under = (made == 0) & (values != 0)
    if under.any():
        made[under] = np.copysign(_TINIEST, values[under])
    return made
