"""An ONNX graph -> Forest, where it is one: trees, what exporters put around them, and nothing else.

The walk goes through the nodes in order and knows of every tensor what it is: the input's columns through some steps, a
constant, the result of the trees, or a label. The first operator that makes something else of them ends it. What is
read as a Forest gives one result, and beside it at most the label that follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.frontends.onnx_features import Feature, Name, Step
from outrider.compiler.frontends.onnx_forest import Columns, Result, read_forest
from outrider.compiler.frontends.onnx_nodes import NotAForest
from outrider.compiler.frontends.onnx_trees import TREE_OPERATORS, attributes_of, read_ensemble
from outrider.compiler.model import Label, Precision, plain_labels
from outrider.compiler.trees.forest import Forest, Transform
from outrider.runtime.bundle.manifest import TensorSpec
from outrider.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx

_KINDS: dict[int, Precision] = {1: "float32", 11: "float64"}  # of TensorProto.DataType
_ARITHMETIC: dict[str, Name] = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}
_TRANSFORMS: dict[str, Transform] = {"Sigmoid": "sigmoid", "Exp": "exponential", "Softmax": "softmax"}
# Reshapes keep the order of values, so rows stay rows wherever the batch stays axis 0, which is checked by running.
_SHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


@dataclass(frozen=True)
class Choice:
    """The label of each row, or its place: that of the largest column of the result, the first among equals."""

    labels: tuple[Label, ...]


Constant = NDArray[Any]
Value = Columns | Constant | Result | Choice | None  # None: a label that does not follow from the result


@dataclass(frozen=True)
class TreeGraph:
    """A graph as a Forest. `output` and `label` name outputs of the graph; `label` follows from the result by `labels`.

    `decides_in`: the type in which the graph compares the input's columns.
    """

    forest: Forest
    output: str
    label: str | None
    labels: tuple[Label, ...]
    decides_in: Precision


def check_trees(graph: onnx.GraphProto) -> None:
    """Raises BadModelError where a tree operator of the graph has trees that are none."""
    for node in graph.node:
        if node.domain == "ai.onnx.ml" and node.op_type in TREE_OPERATORS:
            try:
                read_ensemble(node)
            except NotAForest:
                continue


def read_graph(graph: onnx.GraphProto, inputs: tuple[TensorSpec, ...]) -> TreeGraph:
    """Raises NotAForest where the graph is something else, BadModelError for trees that are none."""
    walk = _Walk(graph, inputs)
    for node in graph.node:
        walk.step(node)
    return walk.finish([value.name for value in graph.output])


class _Walk:
    """What is known of each tensor so far, by name."""

    def __init__(self, graph: onnx.GraphProto, inputs: tuple[TensorSpec, ...]) -> None:
        import onnx

        operators = sum(node.op_type in TREE_OPERATORS for node in graph.node)
        if operators != 1:
            raise NotAForest(f"it has {operators or 'no'} tree operators")
        if len(inputs) != 1 or inputs[0].dtype not in ("float32", "float64") or len(inputs[0].shape) != 2:
            raise NotAForest("its input is not one matrix of floats")
        if inputs[0].shape[0] is not None:
            raise NotAForest("its batch is of a fixed size")
        width, kind = inputs[0].shape[1] or 0, _KINDS[1 if inputs[0].dtype == "float32" else 11]
        features = tuple(Feature(column) for column in range(width))
        self._decides_in: Precision = kind
        self._known: dict[str, Value] = {inputs[0].name: Columns(width, kind, kind, features)}
        for tensor in graph.initializer:
            self._known[tensor.name] = onnx.numpy_helper.to_array(tensor)

    def step(self, node: onnx.NodeProto) -> None:
        """Go past one node. Raises NotAForest for one that is not known here."""
        handlers: Mapping[str, Callable[[onnx.NodeProto, dict[str, Any]], Value]] = {
            "Identity": self._same,
            "Cast": self._cast,
            "Constant": self._constant,
            "Scaler": self._scaler,
            "Imputer": self._imputer,
            "Concat": self._concat,
            "Gather": self._gather,
            "ArrayFeatureExtractor": self._gather,
            "ArgMax": self._argmax,
            **dict.fromkeys(_ARITHMETIC, self._arithmetic),
            **dict.fromkeys(_TRANSFORMS, self._transform),
            **dict.fromkeys(_SHAPES, self._reshape),
        }
        if node.op_type in TREE_OPERATORS:
            self._trees(node)
            return
        handler = handlers.get(node.op_type)
        if handler is None or len(node.output) != 1 or node.domain not in ("", "ai.onnx", "ai.onnx.ml"):
            raise NotAForest(f"it has the operator {node.op_type}")
        self._known[node.output[0]] = handler(node, attributes_of(node))

    def finish(self, outputs: list[str]) -> TreeGraph:
        """The graph as a whole."""
        results = {name: value for name in outputs if isinstance(value := self._known.get(name), Result)}
        labels = {name: value for name in outputs if isinstance(value := self._known.get(name), Choice)}
        if len(results) != 1 or len(labels) > 1 or len(results) + len(labels) != len(outputs):
            raise NotAForest("its outputs are not one result of the trees and at most the label that follows from it")
        (output, result), *_ = results.items()
        label, choice = next(iter(labels.items()), (None, Choice(result.labels)))
        return TreeGraph(result.forest, output, label, choice.labels, self._decides_in)

    # Nodes that say what is inside --------------------------------------------------------------------------------

    def _trees(self, node: onnx.NodeProto) -> None:
        columns = _without_first_rounding(self._needed(node))
        self._decides_in = columns.source
        result = read_forest(read_ensemble(node), columns)
        if node.op_type != "TreeEnsembleClassifier":
            self._known[node.output[0]] = result
            return
        label, scores = node.output
        self._known[label] = Choice(result.labels) if result.labelled else None
        self._known[scores] = result

    def _constant(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> Value:
        found = next(
            (
                attributes[name]
                for name in ("value", "value_float", "value_floats", "value_int", "value_ints")
                if name in attributes
            ),
            None,
        )
        if found is None:
            raise NotAForest("it has a constant that is neither a number nor a tensor")
        return np.asarray(found)

    # Nodes that keep what it is -----------------------------------------------------------------------------------

    def _same(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> Value:
        return self._given(node)

    def _cast(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> Value:
        value, kind = self._given(node), _KINDS.get(attributes["to"])
        if isinstance(value, Columns) and kind is not None:
            if kind == value.kind:
                return value
            return _then(replace(value, kind=kind), lambda _i: Step("round" if kind == "float32" else "widen"))
        if isinstance(value, Choice) or value is None:  # the spec of a label is looked at where it is an output
            return value
        if isinstance(value, Result) and kind is not None:
            return value
        raise NotAForest("it casts what it computes to another type than floats")

    def _reshape(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> Value:
        value = self._given(node)
        if isinstance(value, Result):
            return replace(value, reshaped=True)
        if isinstance(value, Choice) or value is None:
            return value
        raise NotAForest(f"it has the operator {node.op_type} before its trees")

    # Nodes before the trees ---------------------------------------------------------------------------------------

    def _scaler(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> Value:
        columns = self._needed(node)
        offset = self._numbers(attributes.get("offset"), columns, "float32", zero=True)
        scale = self._numbers(attributes.get("scale"), columns, "float32")
        # The constants are float32, as the result is; in between, values are of the input's type.
        wide = np.dtype(columns.kind).type
        scaled = _then(columns, lambda i: (Step("sub", wide(offset[i])), Step("mul", wide(scale[i]))))
        return scaled if columns.kind == "float32" else _then(replace(scaled, kind="float32"), lambda _i: Step("round"))

    def _imputer(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> Value:
        columns = self._needed(node)
        replaced = attributes.get("replaced_value_float", 0.0)
        if not np.isnan(replaced):
            raise NotAForest("it imputes for a value other than NaN")
        values = self._numbers(attributes.get("imputed_value_floats"), columns, columns.kind, zero=True)
        return _then(columns, lambda i: Step("impute", values[i]))

    def _arithmetic(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> Value:
        """A matrix and a constant, in either order where that makes no difference."""
        first, second = (self._known.get(name) for name in node.input)
        if not isinstance(second, np.ndarray) and node.op_type in ("Add", "Mul"):
            first, second = second, first
        if not isinstance(second, np.ndarray):
            raise NotAForest(f"it has the operator {node.op_type} between two things that it computes")
        if isinstance(first, Result):
            return self._shift(first, node.op_type, second)
        if not isinstance(first, Columns):
            raise NotAForest(f"it has the operator {node.op_type} with something else than features")
        if second.ndim > 2 or (second.ndim == 2 and len(second) != 1):
            raise NotAForest(f"it has the operator {node.op_type} with a constant for each row")
        name = _ARITHMETIC[node.op_type]
        values = self._numbers(second.ravel(), first, first.kind, zero=name in ("add", "sub"))
        return _then(first, lambda i: Step(name, values[i]))

    def _concat(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> Value:
        parts = [self._known.get(name) for name in node.input]
        matrices = [part for part in parts if isinstance(part, Columns)]
        kinds = {part.kind for part in matrices}
        if len(matrices) != len(parts) or attributes.get("axis") not in (1, -1) or len(kinds) != 1:
            raise NotAForest("it has the operator Concat with something else than columns")
        return replace(matrices[0], features=tuple(feature for part in matrices for feature in part.features))

    def _gather(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> Value:
        """Columns by their numbers; or labels by their places, as ArrayFeatureExtractor does it."""
        value, places = (self._known.get(name) for name in node.input)
        if isinstance(value, np.ndarray) and isinstance(places, Choice) and (value.ndim == 1 or len(value) == 1):
            return self._named(value, places)
        axis = attributes.get("axis", 0) if node.op_type == "Gather" else 1
        if not isinstance(value, Columns) or not isinstance(places, np.ndarray) or axis not in (1, -1):
            raise NotAForest(f"it has the operator {node.op_type} with something else than columns")
        numbers = places.ravel().tolist()
        flat = places.ndim == 1 or (places.ndim > 1 and node.op_type == "ArrayFeatureExtractor")
        if not flat or any(not -len(value.features) <= number < len(value.features) for number in numbers):
            raise NotAForest(f"it has the operator {node.op_type} with places that are no columns")
        return replace(value, features=tuple(value.features[number] for number in numbers))

    # Nodes behind the trees ---------------------------------------------------------------------------------------

    def _transform(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> Value:
        value = self._given(node)
        if not isinstance(value, Result) or value.forest.transform != "identity" or value.forest.complement:
            raise NotAForest(f"it has the operator {node.op_type} for something else than sums of trees")
        along = attributes.get("axis", -1) in (1, -1) and value.forest.outputs > 1 and not value.reshaped
        if node.op_type == "Softmax" and not along:
            raise NotAForest("it has the operator Softmax along something else than the outputs")
        return replace(value, forest=replace(value.forest, transform=_TRANSFORMS[node.op_type]))

    @staticmethod
    def _shift(result: Result, operator: str, constant: Constant) -> Result:
        """A result times a constant: the same where that is 1; behind Exp part of it, c e^x = e^(x + ln c)."""
        forest, factor = result.forest, constant.astype(np.float64).ravel()
        if operator == "Div":
            factor = 1 / np.where(factor == 0, np.nan, factor)
        if operator in ("Mul", "Div") and (factor == 1).all():
            return result
        if operator in ("Mul", "Div") and forest.transform == "exponential" and len(factor) == 1 and factor[0] > 0:
            ones = np.ones(forest.outputs) if forest.divisor is None else forest.divisor
            return replace(result, forest=replace(forest, base=forest.base + np.log(factor), divisor=ones))
        raise NotAForest(f"it has the operator {operator} for the result of its trees")

    def _argmax(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> Value:
        value = self._given(node)
        along = attributes.get("axis", 0) in (1, -1) and not attributes.get("select_last_index", 0)
        if not isinstance(value, Result) or not along or value.forest.columns_out == 1 or value.reshaped:
            raise NotAForest("it has the operator ArgMax for something else than columns of the result")
        return Choice(tuple(range(value.forest.columns_out)))

    @staticmethod
    def _named(names: Constant, places: Choice) -> Choice:
        """Labels looked up in a table."""
        values = [name.decode() if isinstance(name, bytes) else name for name in names.ravel().tolist()]
        try:
            table = plain_labels(values)
        except UnsupportedError as e:
            raise NotAForest("it looks labels up that are neither integers nor text") from e
        numbers = [place for place in places.labels if isinstance(place, int) and 0 <= place < len(table)]
        if len(numbers) != len(places.labels):
            raise NotAForest("it looks labels up in a table that lacks them")
        return Choice(tuple(table[number] for number in numbers))

    # ------------------------------------------------------------------------------------------------------------

    def _given(self, node: onnx.NodeProto) -> Value:
        if node.input[0] not in self._known:
            raise NotAForest(f"it has the operator {node.op_type} for an optional input")
        return self._known[node.input[0]]

    def _needed(self, node: onnx.NodeProto) -> Columns:
        value = self._given(node)
        if not isinstance(value, Columns):
            raise NotAForest(f"it has the operator {node.op_type} for something else than features")
        return value

    @staticmethod
    def _numbers(given: Any, columns: Columns, kind: Precision, *, zero: bool = False) -> Constant:
        """A constant for each feature, of the type `kind`. Raises NotAForest for others than finite numbers.

        0 only where `zero` says so: a feature times 0 is the same for all numbers but infinities.
        """
        values = np.asarray([] if given is None else given, np.dtype(kind)).ravel()
        if len(values) not in (1, len(columns.features)):
            raise NotAForest(f"it has {len(values)} constants for {len(columns.features)} features")
        if not np.isfinite(values).all() or (not zero and (values == 0).any()):
            raise NotAForest("it computes features with constants that are 0 or no finite numbers")
        return np.broadcast_to(values, len(columns.features))


def _then(columns: Columns, step: Callable[[int], Step | tuple[Step, ...]]) -> Columns:
    """One or more steps for each feature, by its number."""

    def steps(number: int) -> tuple[Step, ...]:
        made = step(number)
        return (made,) if isinstance(made, Step) else made

    return replace(columns, features=tuple(f.then(*steps(i)) for i, f in enumerate(columns.features)))


def _without_first_rounding(columns: Columns) -> Columns:
    """Where all float64 columns are rounded to float32 at once, the same as columns that come as float32."""
    rounded = [bool(feature.steps) and feature.steps[0].name == "round" for feature in columns.features]
    if columns.source == "float32" or not all(rounded):
        return columns
    features = tuple(Feature(feature.column, feature.steps[1:]) for feature in columns.features)
    return replace(columns, source="float32", features=features)
