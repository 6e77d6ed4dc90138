"""Which operator it is that ONNX or ONNX Runtime refuses, and the module that it came from where the graph knows it."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from outrider.compiler.passes.graph import graphs
from outrider.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx

SCOPES = "pkg.torch.onnx.name_scopes"  # torch's exporter writes the path of modules there, the operator last
_STATUS = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (This is an invalid model\. )?")
_SOURCE = re.compile(r"^/\S+:\d+ .*?\) ")  # where in ONNX Runtime's sources it was raised
_NODE_NAMES = (
    re.compile(r"node with name '([^']+)'"),
    re.compile(r"in node \(([^)]+)\)"),
    re.compile(r"Node \(([^)]+)\)"),
    re.compile(r'In Node, \("([^"]+)"'),
    re.compile(r"Bad node spec for node\. Name: (\S+) OpType"),
    re.compile(r"Name:'([^']+)'"),
)
_OPERATORS = (
    re.compile(r"No Op registered for (?P<kind>\w+) with"),
    re.compile(r"(?P<domain>[\w.]+):(?P<kind>\w+)\(-?\d+\) is not a registered"),
    re.compile(r"No opset import for domain '(?P<domain>[^']*)'"),
    re.compile(r"of operator \((?P<kind>\w+)\) in node \(\)"),
    re.compile(r"Could not find an implementation for (?P<kind>\w+)\(\d+\)"),
    re.compile(r"while running (?P<kind>\w+) node"),
)


def is_unknown_operator(text: str) -> bool:
    """Whether ONNX's checker refused an operator that it does not know, rather than a graph that is none."""
    return "No Op registered for" in text or "No opset import for domain" in text


def refusal(text: str, graph: onnx.GraphProto) -> UnsupportedError:
    """The error for a graph that was refused with these words, naming operator, node and source module."""
    lines = text.strip().splitlines() or ["no reason given"]
    said = _SOURCE.sub("", _STATUS.sub("", lines[0]))
    node = _named_node(text, graph)
    if node is None:
        return UnsupportedError(f"ONNX Runtime cannot run this model: {said}")
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    place = (f"node {node.name!r}" if node.name else "", _module(node))
    where = ", ".join(part for part in place if part)
    return UnsupportedError(f"ONNX Runtime cannot run the operator {operator}{f' ({where})' if where else ''}: {said}")


def _named_node(text: str, graph: onnx.GraphProto) -> onnx.NodeProto | None:
    """The node that the words are about; where they name an operator only, the first of its kind."""
    nodes: list[onnx.NodeProto] = [node for one in graphs(graph) for node in one.node]
    names = [match.group(1) for pattern in _NODE_NAMES if (match := pattern.search(text))]
    for node in nodes:
        if node.name and node.name in names:
            return node
    for pattern in _OPERATORS:
        match = pattern.search(text)
        if match is not None:
            wanted = match.groupdict()
            for node in nodes:
                if (
                    wanted.get("kind", node.op_type) == node.op_type
                    and wanted.get("domain", node.domain) == node.domain
                ):
                    return node
    return None


def _module(node: onnx.NodeProto) -> str:
    """`of the module 'layers.1'`; nothing where the graph does not say."""
    written = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
    try:
        scopes = ast.literal_eval(written)
    except (ValueError, SyntaxError):
        return ""
    path = scopes[-2] if isinstance(scopes, list) and len(scopes) > 1 else ""
    return f"of the module {path!r}" if path else ""
