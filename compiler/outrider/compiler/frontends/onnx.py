"""ONNX files. The reference is ONNX Runtime with its graph optimisations switched off.

A graph that is a tree ensemble and no more than exporters put around one becomes a Forest; any other stays a graph.
ONNX Runtime compares in the type of the graph's input, so such a Forest decides on float64 rows where that is double.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec.structs import replace

from outrider.compiler.frontends import ReadOptions
from outrider.compiler.frontends.convert import digest
from outrider.compiler.frontends.onnx_graph import TreeGraph, check_trees, read_graph
from outrider.compiler.frontends.onnx_nodes import NotAForest
from outrider.compiler.frontends.onnx_refusal import is_unknown_operator, refusal
from outrider.compiler.frontends.onnx_shapes import check_types, find_tensors, input_specs
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
from outrider.compiler.onnx_session import open_session
from outrider.compiler.passes.graph import graphs, inputs_of
from outrider.compiler.passes.shapes import bind
from outrider.compiler.trees.check import check_forest
from outrider.runtime.bundle.manifest import Dtype, Signature, TensorSpec
from outrider.runtime.calls import rows_of_call
from outrider.runtime.errors import BadModelError, EngineMissingError, UnsupportedError

if TYPE_CHECKING:
    import onnx

_IDENTITY_OPSET = 9  # as old as exporters of trees write, and knows Identity
_STORED_ALONE = 4  # the version of the format from which weights need not be inputs, too


class OnnxFrontend:
    """Reads ONNX files and `onnx.ModelProto` objects, with their weights inside."""

    def read_object(self, source: Any, options: ReadOptions) -> Model:
        """An `onnx.ModelProto`."""
        import onnx

        if not isinstance(source, onnx.ModelProto):
            raise UnsupportedError(f"ONNX objects of type {type(source).__name__} are not supported")
        return read_onnx(source.SerializeToString(deterministic=True), options)

    def read_file(self, path: Path, options: ReadOptions) -> Model:
        """A `.onnx` file, with the files beside it that hold its weights."""
        return read_onnx(path.read_bytes(), options, folder=path.parent)


def read_onnx(data: bytes, options: ReadOptions, folder: Path | None = None) -> Model:
    """The model of an ONNX file's bytes; weights in other files are in `folder`.

    Raises BadModelError or UnsupportedError.
    """
    import onnx

    model = _parse(data)
    changed = _take_in(model, folder)
    _check_weights(model)
    if options.shapes:
        model = bind(model, options.shapes)
    if changed or options.shapes:
        data = _serialise(model)
    maps = _unzip_maps(model)
    zipped = maps[0] if len(maps) == 1 else ()
    graph = model.graph
    check_types(graph)
    check_trees(graph)
    given = input_specs(graph)
    found = _try(lambda: read_graph(graph, given))
    plain = _serialise(model) if maps else data
    session = _session(plain, graph)
    names = tuple(value.name for value in graph.output)

    def reference(values: Mapping[str, Array]) -> dict[str, Array]:
        results = session.run(list(names), {name: np.asarray(array, order="C") for name, array in values.items()})
        return {name: np.asarray(result) for name, result in zip(names, results, strict=True)}

    tensors = find_tensors(graph, {one.name: one.shape for one in session.get_outputs()}, reference, options.examples)
    inputs, outputs = tensors.inputs, tensors.outputs
    if isinstance(found, TreeGraph):
        found = _try(partial(_fitting, found, outputs)) if tensors.batched else "its inputs and outputs are no rows"
    if isinstance(found, TreeGraph):
        return _forest_model(found, data, graph, inputs, outputs, reference, options)
    own_label = bool(zipped) and not options.class_labels
    labels = options.class_labels or zipped
    signature = _signature(inputs, outputs, labels, options, own_label=own_label, batched=tensors.batched)
    return Model(
        framework="onnx",
        framework_version=onnx.__version__,
        description=f"{graph.name or 'graph'}, {len(graph.node)} nodes",
        sha256=digest(data),
        signature=signature,
        payload=OnnxGraph(data=plain, no_forest=found),
        reference=reference,
        computed=names,
        sizes=tensors.sizes,
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
    if not model.graph.node:
        raise BadModelError("the ONNX model has no operators")
    kept = inputs_of(model.graph)
    if len(kept) != len(model.graph.input):
        model.ir_version = max(model.ir_version, _STORED_ALONE)
        del model.graph.input[:]
        model.graph.input.extend(kept)
    if not kept:
        raise BadModelError("the ONNX model has no inputs")
    return model


def _take_in(model: onnx.ModelProto, folder: Path | None) -> bool:
    """Put weights that lie in other files into the model; whether there were any. Then check it as a whole."""
    import onnx

    outside = [tensor.name for tensor in _stored(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if outside and folder is None:
        raise UnsupportedError(
            f"the weights {outside[0]!r} of the ONNX model lie in another file", hint="give the path of the model file"
        )
    try:
        if outside:
            onnx.load_external_data_for_model(model, str(folder))
        _check(model)
    except (OSError, ValueError) as e:
        raise BadModelError(f"the weights of the ONNX model cannot be read: {e}") from e
    except onnx.checker.ValidationError as e:
        if is_unknown_operator(str(e)):
            raise refusal(str(e), model.graph) from e
        raise BadModelError(f"the ONNX model is not valid: {str(e).strip().splitlines()[0]}") from e
    return bool(outside)


def _stored(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that the file holds, wherever: weights, and what operators have as attributes."""
    for graph in graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
    for function in model.functions:
        for node in function.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)


def _check(model: onnx.ModelProto) -> None:
    """ONNX's own check, for which inputs and outputs without a shape are none. Raises its ValidationError."""
    import onnx

    values = (*model.graph.input, *model.graph.output)
    shapeless = [value.type.tensor_type for value in values if value.type.HasField("tensor_type")]
    shapeless = [tensor for tensor in shapeless if not tensor.HasField("shape")]
    for tensor in shapeless:
        tensor.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    finally:
        for tensor in shapeless:
            tensor.ClearField("shape")


def _serialise(model: onnx.ModelProto) -> bytes:
    try:
        data: bytes = model.SerializeToString(deterministic=True)
    except Exception as e:  # protobuf's EncodeError or ValueError, by its version
        raise UnsupportedError("ONNX models of more than 2 GB are not supported") from e
    return data


def _check_weights(model: onnx.ModelProto) -> None:
    """Raises BadModelError for weights that hold NaN, which no calibration would show. A lone NaN is a constant."""
    import onnx

    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    for tensor in model.graph.initializer:
        if tensor.data_type in floats and tensor.dims and max(tensor.dims) > 1:
            missing = int(np.isnan(onnx.numpy_helper.to_array(tensor)).sum())
            if missing:
                raise BadModelError(
                    f"the weights {tensor.name!r} of the ONNX model hold NaN in {missing} places",
                    hint="the training went wrong; export an earlier checkpoint",
                )


def _session(data: bytes, graph: onnx.GraphProto) -> Any:
    try:
        return open_session(data, as_written=True)
    except EngineMissingError:
        raise
    except Exception as e:  # the binding raises one class a status code, with no common base but Exception
        raise refusal(str(e), graph) from e


def _signature(
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    labels: Sequence[Label],
    options: ReadOptions,
    *,
    own_label: bool,
    batched: bool = True,
) -> Signature:
    numeric = [spec for spec in outputs if spec.name != LABEL and spec.dtype.startswith("float")]
    numeric = numeric or [spec for spec in outputs if spec.name != LABEL and spec.dtype != "string"] or list(outputs)
    predict = next((spec for spec in numeric if spec.name == PROBABILITIES), numeric[0])
    bare = Signature(inputs=inputs, outputs=outputs, predict=predict.name, batched=batched)
    rows = rows_of_call(bare)
    if labels and not batched and rows is None:
        raise BadModelError("class labels need a model of rows; axis 0 of this ONNX model's tensors counts none")
    if labels and len(predict.shape) > 2:
        raise BadModelError(
            f"class labels need a score for each class in a row; {predict.name!r} of the ONNX model has the shape "
            f"({', '.join('n' if size is None else str(size) for size in predict.shape)})"
        )
    classes = 2 if len(predict.shape) < 2 or predict.shape[1:] == (1,) else predict.shape[-1] or 0
    labels = check_labels(tuple(labels), classes)
    own_label = own_label or any(spec.name == LABEL for spec in outputs)
    names = tuple(options.feature_names)
    if names and (len(inputs) != 1 or inputs[0].shape[1:] != (len(names),)):
        raise BadModelError(f"there are {len(names)} feature names, which the ONNX model's inputs do not fit")
    own = () if own_label else tuple(replace(spec, shape=(rows,)) for spec in label_output(labels))
    return replace(bare, outputs=(*outputs, *own), feature_names=names, class_labels=labels)
