"""A program of torch.export as the bytes of an ONNX file: the same program gives the same bytes.

What torch's exporter writes beside the graph (paths, source text, its version) is left out, but for the scopes of
modules in which operators stand. Inputs and outputs get their names here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from outrider.compiler.frontends.onnx_refusal import SCOPES
from outrider.compiler.frontends.torch_errors import unconvertible
from outrider.compiler.frontends.torch_program import Program
from outrider.compiler.frontends.torch_quiet import quiet
from outrider.compiler.passes.graph import Names, defined, graphs
from outrider.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx

OPSET = 18
_SYMBOL = re.compile(r"\b[su]\d+\b")


def to_onnx(program: Program, title: str) -> bytes:
    """The file; `title` names its graph. Raises UnsupportedError, naming an operator that there is no ONNX for."""
    import torch

    try:
        with quiet(), torch.no_grad():
            made = torch.onnx.export(
                program.exported,
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                optimize=True,
                verbose=False,
            )
            model = made.model_proto
    except ModuleNotFoundError:
        raise
    except Exception as e:  # of the exporter's own kinds, and of what it works with
        raise unconvertible(e, program.exported) from e
    model = _inlined(model)
    model.graph.name = title
    _strip(model)
    _name_tensors(model, program.input_names, program.output_names)
    _name_sizes(model)
    try:
        data: bytes = model.SerializeToString(deterministic=True)
    except Exception as e:  # protobuf's EncodeError or ValueError, by its version
        raise UnsupportedError("models of more than 2 GB are not supported") from e
    return data


def _inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without functions of its own, which not every backend knows."""
    if not model.functions:
        return model
    from onnx import inliner

    made: onnx.ModelProto = inliner.inline_local_functions(model)
    return made


def _strip(model: onnx.ModelProto) -> None:
    model.producer_name, model.producer_version, model.doc_string, model.domain = "", "", "", ""
    del model.metadata_props[:]
    for graph in graphs(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.doc_string = ""
            del value.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            scopes = [entry.value for entry in node.metadata_props if entry.key == SCOPES]
            del node.metadata_props[:]
            for text in scopes[:1]:
                node.metadata_props.add(key=SCOPES, value=text)


def _name_tensors(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give inputs and outputs these names. An output that is an input, a weight or another output becomes a copy."""
    import onnx

    graph = model.graph
    assert len(graph.input) == len(inputs), "the exporter keeps every input"
    assert len(graph.output) == len(outputs), "the exporter keeps every output"
    names = Names(model)
    wanted = {*inputs, *outputs}
    within = set().union(*(defined(one) for one in graphs(graph)))
    renamed = {name: names.fresh(f"{name}_inner") for name in sorted(wanted & within)}
    renamed.update(zip((value.name for value in graph.input), inputs, strict=True))
    computed = {name for node in graph.node for name in node.output}
    copies: list[tuple[str, str]] = []
    taken: set[str] = set()
    for value, name in zip(graph.output, outputs, strict=True):
        if value.name in computed and value.name not in taken:
            taken.add(value.name)
            renamed[value.name] = name
        else:
            copies.append((value.name, name))
    _rename(model, renamed)
    for value, name in zip(graph.output, outputs, strict=True):
        value.name = name
    for source, name in copies:
        graph.node.append(onnx.helper.make_node("Identity", [renamed.get(source, source)], [name], f"copy_{name}"))


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Other names throughout; a name means one thing only, within subgraphs too."""
    for graph in graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.name = names.get(value.name, value.name)
        for node in graph.node:
            for field in (node.input, node.output):
                for place, name in enumerate(field):
                    field[place] = names.get(name, name)


def _name_sizes(model: onnx.ModelProto) -> None:
    """Call free sizes by the input and axis they come from, `batch` where that is 0; make numbers of numbers."""
    found: dict[str, str] = {}
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if _SYMBOL.fullmatch(dim.dim_param):
                wish = f"{value.name}_{axis}" if axis else "batch"
                taken = wish in found.values()
                found.setdefault(dim.dim_param, f"{value.name}_{axis}" if taken else wish)
    each: Callable[[Any], Any] = lambda match: found.get(match.group(), match.group())  # noqa: E731
    for graph in graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param.isdigit():
                    dim.dim_value = int(dim.dim_param)
                elif dim.dim_param:
                    dim.dim_param = _SYMBOL.sub(each, dim.dim_param)
