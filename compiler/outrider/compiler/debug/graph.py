"""A source graph for comparisons: what its nodes compute on real inputs, and where each tensor comes from."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from outrider.compiler.model import Array
from outrider.compiler.onnx_session import open_session
from outrider.compiler.passes.graph import captured, constants, inputs_of
from outrider.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx

Call = Mapping[str, Array]

INPUT = "input"  # what stands for the operator of a tensor that is given
_SCOPES, _CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"  # torch.onnx's notes on a node


@dataclass(frozen=True)
class Origin:
    """What makes a tensor. `inputs`: the tensors that it is made of, constants left out. `module`: the path of the
    torch module and its class, where the exporter wrote it."""

    tensor: str
    operator: str
    node: str
    module: str | None
    inputs: tuple[str, ...]


def origins(model: onnx.ModelProto) -> list[Origin]:
    """The tensors that depend on the model's inputs, in the order of the graph; those of graphs within it left out."""
    fixed = set(constants(model.graph))
    given = {value.name for value in model.graph.input} - fixed
    moving, found = set(given), list[Origin]()
    for node in model.graph.node:
        read = tuple(name for name in (*node.input, *sorted(captured(node))) if name in moving)
        if not read:
            continue
        names = [name for name in node.output if name]
        moving.update(names)
        found += [Origin(name, node.op_type, node.name, module_of(node), read) for name in names]
    return found


def input_origins(model: onnx.ModelProto) -> list[Origin]:
    """The model's inputs, which a quantised artifact holds in int8, too."""
    return [Origin(value.name, INPUT, "", None, ()) for value in inputs_of(model.graph)]


def module_of(node: onnx.NodeProto) -> str | None:
    """The torch module that a node comes from: `layer1.0.conv1 (Conv2d)`, by what torch's exporter noted."""
    notes = {one.key: one.value for one in node.metadata_props}
    scopes, classes = _texts(notes.get(_SCOPES)), _texts(notes.get(_CLASSES))
    if len(scopes) < 2:
        return None
    kind = classes[-2].rpartition(".")[2] if len(classes) >= 2 else ""
    return f"{scopes[-2] or 'the model itself'}{f' ({kind})' if kind else ''}"


def _texts(note: str | None) -> list[str]:
    try:
        found = ast.literal_eval(note or "[]")
    except (ValueError, SyntaxError):
        return []
    return [str(one) for one in found] if isinstance(found, list) else []


def exposed(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy whose outputs are its own, and these tensors."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    known = {value.name for value in made.graph.output}
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    return made


def run_plainly(model: onnx.ModelProto, calls: Sequence[Call]) -> Iterator[dict[str, Array]]:
    """The outputs of each call that are tensors of floats, by ONNX Runtime, which computes node by node as written.

    Raises UnsupportedError where it cannot.
    """
    names = [value.name for value in model.graph.output]
    try:
        session = open_session(model.SerializeToString(), as_written=True)
        for call in calls:
            outputs: list[Any] = session.run(names, {name: np.ascontiguousarray(array) for name, array in call.items()})
            yield {
                name: value
                for name, value in zip(names, outputs, strict=True)
                if isinstance(value, np.ndarray) and value.dtype.kind == "f"
            }
    except Exception as e:  # of many kinds, some not exported
        raise UnsupportedError(f"ONNX Runtime cannot run the graph with its tensors laid open: {e}") from e
