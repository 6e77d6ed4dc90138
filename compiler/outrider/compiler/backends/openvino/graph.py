"""An ONNX file read into OpenVINO, with what is known of it, or refused by the names of what it cannot run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from outrider.compiler.passes.graph import inputs_of, subgraphs
from outrider.runtime.engines.openvino import brief, plugin_config
from outrider.runtime.engines.openvino_files import import_openvino, openvino_core
from outrider.runtime.errors import BadModelError, UnsupportedError

_INTEGERS = (f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))
_DTYPES = frozenset(("FLOAT", "DOUBLE", "FLOAT16", "BOOL", *_INTEGERS))  # those of signatures, but text
_UNKNOWN = re.compile(r"No conversion rule found for operations: (.+)")
_FAILED = re.compile(r"Conversion is failed for: (.+)")
_REASON = re.compile(r"with a message:\n((?:.+\n)+)")
_VERSION = re.compile(r"-\d+$")


@dataclass(frozen=True)
class Source:
    """A graph in both forms.

    `inputs` are the ONNX graph's inputs without its initialisers, in its order, with their TypeProtos; `names` are
    those of all its nodes and tensors, those of nested graphs among them; `outputs` those of each named node's outputs.
    """

    model: Any
    inputs: dict[str, Any]
    names: frozenset[str]
    outputs: dict[str, tuple[str, ...]]

    def parameters(self) -> dict[str, Any]:
        """The model's inputs by the names that the ONNX graph has for them, without those that nothing reads.

        Raises UnsupportedError where OpenVINO renamed one, as it does with what is given out as it came, and dropped
        another.
        """
        found = self.model.get_parameters()
        if len(found) == len(self.inputs):
            return dict(zip(self.inputs, found, strict=True))
        named = {name: one for one in found for name in one.output(0).get_names() if name in self.inputs}
        if len(named) != len(found):
            raise UnsupportedError(
                "OpenVINO cannot tell this model's inputs apart", hint="remove those that are not read"
            )
        return named

    def layers(self, node: str) -> list[str]:
        """The layers that OpenVINO made of a node: called after it or its output, or after one of them and a part.

        Those that it only numbered are not found. Empty for what is no node.
        """
        if node not in self.outputs:
            return []
        own = (node, *self.outputs[node])
        parts = tuple(f"{name}/" for name in own)
        found = (layer.get_friendly_name() for layer in self.model.get_ops() if layer.get_type_name() != "Result")
        return [name for name in found if name in own or (name not in self.names and name.startswith(parts))]


def read_graph(data: bytes) -> Source:
    """Read an ONNX file, and make sure that the CPU plugin can run it.

    Raises BadModelError, UnsupportedError, EngineMissingError.
    """
    import onnx

    try:
        proto = onnx.load_model_from_string(data)
    except Exception as e:  # protobuf's DecodeError, of whichever implementation is in use
        raise BadModelError(f"not an ONNX file: {e}") from e
    inputs = {value.name: value.type for value in inputs_of(proto.graph)}
    _refuse_types([*inputs.items(), *((value.name, value.type) for value in proto.graph.output)])
    core = openvino_core()
    from openvino._offline_transformations import apply_moc_transformations

    try:
        model = core.read_model(data)
        # What `openvino.convert_model` does after reading, without its telemetry. It folds what is computed from
        # shapes, without which NNCF takes the wrong axis of some weights for their channels.
        apply_moc_transformations(model, cf=True, smart_reshape=True)
    except Exception as e:  # the binding raises RuntimeError for all of it, and may let others through
        raise _unreadable(e, proto.graph) from e
    _check_plugin(core, model)
    outputs = {node.name: tuple(node.output) for node in _nodes(proto.graph) if node.name}
    return Source(model, inputs, frozenset(_names(proto.graph)), outputs)


def with_all_inputs(model: Any, source: Source) -> Any:
    """The model with all inputs of the ONNX graph, in its order: OpenVINO drops those that nothing reads."""
    import numpy as np
    import onnx

    openvino = import_openvino()
    if len(model.get_parameters()) == len(source.inputs):
        return model
    known = dict(zip(source.parameters(), model.get_parameters(), strict=True))
    parameters = []
    for name, kind in source.inputs.items():
        parameter = known.get(name)
        if parameter is None:
            tensor = kind.tensor_type
            dtype = openvino.Type(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
            parameter = openvino.op.Parameter(dtype, _shape(openvino, tensor))
            parameter.set_friendly_name(name)
            parameter.output(0).set_names({name})
        parameters.append(parameter)
    return openvino.Model(model.get_results(), model.get_sinks(), parameters, model.get_friendly_name())


def _shape(openvino: Any, tensor: Any) -> Any:
    if not tensor.HasField("shape"):
        return openvino.PartialShape.dynamic()
    sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    return openvino.PartialShape(sizes)


def _refuse_types(values: Sequence[tuple[str, Any]]) -> None:
    import onnx

    for name, kind in values:
        if not kind.HasField("tensor_type"):
            raise UnsupportedError(
                f"OpenVINO takes and gives tensors alone, and {name!r} is a sequence, map or optional"
            )
        dtype = onnx.TensorProto.DataType.Name(kind.tensor_type.elem_type)
        if dtype == "STRING":
            raise UnsupportedError(f"OpenVINO has no tensors of text, which {name!r} is")
        if dtype not in _DTYPES:
            raise UnsupportedError(f"inputs and outputs cannot be {dtype}, which {name!r} is")


def _check_plugin(core: Any, model: Any) -> None:
    """The plugin for CPUs has not all that OpenVINO can read."""
    try:
        supported = core.query_model(model, "CPU", plugin_config("f32", 1))
    except Exception as e:  # as above
        raise UnsupportedError(f"OpenVINO cannot run this model on a CPU: {brief(e)}") from e
    missing = sorted(
        f"{node.get_type_name()} ({node.get_friendly_name()!r})"
        for node in model.get_ops()
        if node.get_friendly_name() not in supported
    )
    if missing:
        raise UnsupportedError(f"OpenVINO cannot run on a CPU: {', '.join(missing)}")


def _unreadable(error: Exception, graph: Any) -> UnsupportedError:
    text = str(error)
    lines = (*_UNKNOWN.findall(text), *_FAILED.findall(text))
    kinds = [_VERSION.sub("", kind.strip()) for line in lines for kind in line.split(",")]
    if not kinds:
        return UnsupportedError(f"OpenVINO cannot read this model: {brief(error)}")
    named = "; ".join(_where(kind, graph) for kind in dict.fromkeys(kinds))
    reasons = "".join(f": {said.strip().splitlines()[-1].strip()}" for said in _REASON.findall(text)[:1])
    return UnsupportedError(f"OpenVINO cannot convert {named}{reasons}", hint="another backend may")


def _where(kind: str, graph: Any) -> str:
    """An operator with the first node of it, and the source module where the exporter wrote it down."""
    for node in _nodes(graph):
        if kind in (node.op_type, f"{node.domain}.{node.op_type}"):
            notes = {prop.key: prop.value for prop in node.metadata_props}
            module = notes.get("pkg.torch.onnx.name_scopes")
            return f"{kind} (node {node.name or node.output[0]!r}{f', module {module}' if module else ''})"
    return kind


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, those of nested graphs after the node that holds them."""
    for node in graph.node:
        yield node
        for nested in subgraphs(node):
            yield from _nodes(nested)


def _names(graph: Any) -> Iterator[str]:
    for value in (*graph.input, *graph.output, *graph.initializer):
        yield value.name
    for node in _nodes(graph):
        yield node.name
        yield from node.output
