"""ONNX files. The reference is ONNX Runtime with its graph optimisations switched off.

A graph that is a tree ensemble and no more than exporters put around one becomes a Forest; any other stays a graph.
ONNX Runtime compares in the type of the graph's input, so such a Forest decides on float64 rows where that is double.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from outrider.compiler.frontends import ReadOptions
from outrider.compiler.frontends.convert import digest
from outrider.compiler.frontends.onnx_graph import TreeGraph, check_trees, read_graph
from outrider.compiler.frontends.onnx_nodes import NotAForest
from outrider.compiler.frontends.onnx_trees import attributes_of
from outrider.compiler.model import (
    LABEL,
    PROBABILITIES,
    Array,
    Label,
    Model,
    OnnxGraph,
    Reference,
    check_labels,
    label_output,
)
from outrider.compiler.samples import random_inputs
from outrider.compiler.trees.check import check_forest
from outrider.runtime.bundle.manifest import Dtype, Signature, TensorSpec
from outrider.runtime.errors import BadModelError, UnsupportedError

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


_IDENTITY_OPSET = 9  # as old as exporters of trees write, and knows Identity


class OnnxFrontend:
    """Reads ONNX files and `onnx.ModelProto` objects, with their weights inside."""

    def read_object(self, source: Any, options: ReadOptions) -> Model:
        """An `onnx.ModelProto`."""
        import onnx

        if not isinstance(source, onnx.ModelProto):
            raise UnsupportedError(f"ONNX objects of type {type(source).__name__} are not supported")
        return _read(source.SerializeToString(deterministic=True), options)

    def read_file(self, path: Path, options: ReadOptions) -> Model:
        """A `.onnx` file."""
        return _read(path.read_bytes(), options)


def _read(data: bytes, options: ReadOptions) -> Model:
    import onnx

    model = _parse(data)
    maps = _unzip_maps(model)
    zipped = maps[0] if len(maps) == 1 else ()
    graph = model.graph
    check_trees(graph)
    inputs = tuple(_input_spec(value, onnx.TensorProto.DataType.Name) for value in graph.input)
    batches = {spec.shape[0] for spec in inputs}
    if len(batches) != 1:
        raise UnsupportedError(
            "the inputs of the ONNX model have different batch sizes", hint="export with one batch axis"
        )
    batch = batches.pop()
    found = _try(lambda: read_graph(graph, inputs))
    plain = model.SerializeToString(deterministic=True) if maps else data
    session = _session(plain)
    names = tuple(value.name for value in graph.output)

    def reference(values: Mapping[str, Array]) -> dict[str, Array]:
        results = session.run(list(names), {name: np.ascontiguousarray(array) for name, array in values.items()})
        return {name: np.asarray(result) for name, result in zip(names, results, strict=True)}

    outputs = _output_specs(graph, reference, inputs, batch, onnx.TensorProto.DataType.Name)
    if isinstance(found, TreeGraph):
        found = _try(partial(_fitting, found, outputs))
    if isinstance(found, TreeGraph):
        return _forest_model(found, data, graph, inputs, outputs, reference, options)
    own_label = bool(zipped) and not options.class_labels
    signature = _signature(inputs, outputs, options.class_labels or zipped, options, own_label=own_label)
    return Model(
        framework="onnx",
        framework_version=onnx.__version__,
        description=f"{graph.name or 'graph'}, {len(graph.node)} nodes",
        sha256=digest(data),
        signature=signature,
        payload=OnnxGraph(data=plain, batch=batch, no_forest=found),
        reference=reference,
        computed=names,
    )


def _try(read: Callable[[], TreeGraph]) -> TreeGraph | str:
    """A graph as a Forest, or why it is none."""
    try:
        return read()
    except NotAForest as e:
        return str(e)


def _fitting(found: TreeGraph, outputs: tuple[TensorSpec, ...]) -> TreeGraph:
    """The same. Raises NotAForest where the graph's outputs turned out to be not of a Forest's shapes."""
    specs = {spec.name: spec for spec in outputs}
    columns = found.forest.columns_out
    if specs[found.output].shape not in ((None, columns), *([(None,)] if columns == 1 else [])):
        raise NotAForest(f"its result is of the shape {specs[found.output].shape}")
    if found.label is not None and specs[found.label] != TensorSpec(
        name=found.label, dtype=_label_dtype(found.labels), shape=(None,)
    ):
        raise NotAForest("its label is not a vector of the type of its class labels")
    return found


def _forest_model(
    found: TreeGraph,
    data: bytes,
    graph: onnx.GraphProto,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    reference: Reference,
    options: ReadOptions,
) -> Model:
    """The model of a graph that is a Forest: of its names and shapes, in float32, its label left to the session."""
    import onnx

    check_forest(found.forest)
    (given,) = inputs
    labels = tuple(options.class_labels) or found.labels

    def run(values: Mapping[str, Array]) -> dict[str, Array]:
        rows = np.asarray(values[given.name], given.dtype)
        return {found.output: reference({given.name: rows})[found.output].astype(np.float32)}

    dtypes: dict[str | None, Dtype] = {found.label: _label_dtype(labels), found.output: "float32"}
    kept = tuple(TensorSpec(name=spec.name, dtype=dtypes[spec.name], shape=spec.shape) for spec in outputs)
    single = (TensorSpec(name=given.name, dtype="float32", shape=given.shape),)
    return Model(
        framework="onnx",
        framework_version=onnx.__version__,
        description=f"{graph.name or 'graph'}, {len(found.forest.trees)} trees, {found.forest.nodes} nodes",
        sha256=digest(data),
        signature=_signature(single, kept, labels, options, own_label=found.label is not None),
        payload=found.forest,
        reference=run,
        computed=(found.output,),
        decides_in=found.decides_in,
    )


def _unzip_maps(model: onnx.ModelProto) -> list[tuple[Label, ...]]:
    """Put plain matrices of probabilities where exporters zip them to maps; the labels of each that was one."""
    import onnx

    outputs = {value.name: value for value in model.graph.output}
    zipped: list[tuple[Label, ...]] = []
    for node in model.graph.node:
        if node.op_type == "ZipMap" and node.output[0] in outputs:
            attributes = attributes_of(node)
            texts = tuple(text.decode() for text in attributes.get("classlabels_strings", ()))
            zipped.append(texts or tuple(attributes.get("classlabels_int64s", ())))
            matrix = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, [None, len(zipped[-1])])
            outputs[node.output[0]].CopyFrom(matrix)
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
    if zipped and not any(opset.domain == "" for opset in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("", _IDENTITY_OPSET))
    return zipped


def _label_dtype(labels: Sequence[Label]) -> Dtype:
    return "string" if any(isinstance(label, str) for label in labels) else "int64"


def _parse(data: bytes) -> onnx.ModelProto:
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as e:  # protobuf's DecodeError, whose module moves between its versions
        raise BadModelError("the file is not a readable ONNX model") from e
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise UnsupportedError("ONNX models with weights in other files are not supported", hint="save as one file")
    if not model.graph.node:
        raise BadModelError("the ONNX model has no operators")
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as e:
        raise BadModelError(f"the ONNX model is not valid: {str(e).strip().splitlines()[0]}") from e
    stored = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in stored]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    if not kept:
        raise BadModelError("the ONNX model has no inputs")
    return model


def _session(data: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # the binding raises one class a status code, with no common base but Exception
        raise UnsupportedError(f"ONNX Runtime cannot run this model: {str(e).strip().splitlines()[0]}") from e


def _input_spec(value: onnx.ValueInfoProto, type_name: Any) -> TensorSpec:
    shape = _dimensions(value)
    if not shape:
        raise UnsupportedError(f"the ONNX input {value.name!r} has no batch axis")
    if None in shape[1:]:
        raise UnsupportedError(
            f"the ONNX input {value.name!r} has a free size other than the batch", hint="export with fixed sizes"
        )
    return TensorSpec(name=value.name, dtype=_dtype(value, type_name), shape=shape)


def _output_specs(
    graph: onnx.GraphProto, reference: Any, inputs: tuple[TensorSpec, ...], batch: int | None, type_name: Any
) -> tuple[TensorSpec, ...]:
    """The real shapes of the outputs, found by running: exporters leave them out or write them wrong."""
    dtypes = {value.name: _dtype(value, type_name) for value in graph.output}
    rows = batch or 2
    try:
        found = reference(random_inputs(inputs, rows))
    except Exception as e:  # as for the session
        raise UnsupportedError(f"ONNX Runtime cannot run this model: {str(e).strip().splitlines()[0]}") from e
    for name, array in found.items():
        if array.ndim == 0 or array.shape[0] != rows:
            raise UnsupportedError(f"the ONNX output {name!r} has no batch axis", hint="the batch must be axis 0")
    return tuple(
        TensorSpec(name=name, dtype=dtypes[name], shape=(batch, *array.shape[1:])) for name, array in found.items()
    )


def _dimensions(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    if not value.type.HasField("tensor_type"):
        raise UnsupportedError(
            f"{value.name!r} of the ONNX model is not a tensor", hint="scikit-learn: export with zipmap=False"
        )
    return tuple(d.dim_value if d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim)


def _dtype(value: onnx.ValueInfoProto, type_name: Any) -> Dtype:
    _dimensions(value)
    name = type_name(value.type.tensor_type.elem_type)
    dtype = _DTYPES.get(name)
    if dtype is None:
        raise UnsupportedError(f"{value.name!r} of the ONNX model has the type {name}, which is not supported")
    return dtype


def _signature(
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    labels: Sequence[Label],
    options: ReadOptions,
    *,
    own_label: bool,
) -> Signature:
    numeric = [spec for spec in outputs if spec.name != LABEL and spec.dtype.startswith("float")]
    numeric = numeric or [spec for spec in outputs if spec.name != LABEL and spec.dtype != "string"] or list(outputs)
    predict = next((spec for spec in numeric if spec.name == PROBABILITIES), numeric[0])
    classes = 2 if len(predict.shape) == 1 else predict.shape[-1] or 0
    labels = check_labels(tuple(labels), classes)
    own_label = own_label or any(spec.name == LABEL for spec in outputs)
    names = tuple(options.feature_names)
    if names and (len(inputs) != 1 or inputs[0].shape[1:] != (len(names),)):
        raise BadModelError(f"there are {len(names)} feature names, which the ONNX model's inputs do not fit")
    return Signature(
        inputs=inputs,
        outputs=outputs if own_label else (*outputs, *label_output(labels)),
        predict=predict.name,
        feature_names=names,
        class_labels=labels,
    )
