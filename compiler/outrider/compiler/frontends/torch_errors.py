"""What stands in the way of an export, in a line: the operator, or the line of Python, with its module."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from outrider.compiler.frontends.torch_quiet import quiet
from outrider.runtime.errors import UnsupportedError

_OPERATOR = re.compile(r"OpOverload\(op='([^']+)'")
_LONG = 240  # characters
_BY_VALUE = re.compile(r"data.dependent", re.IGNORECASE)


def untraceable(error: BaseException, module: Any) -> UnsupportedError:
    """The error for a module that torch.export does not trace."""
    where = _python_place(error, module)
    text = str(error).strip()
    if _BY_VALUE.search(text.split("\n\n", 1)[0]) or "DataDependent" in type(error).__name__:
        return UnsupportedError(
            f"torch.export cannot trace {where}: which way Python goes there depends on the values of a tensor",
            hint="torch.where and torch.cond decide in the graph",
        )
    return UnsupportedError(f"torch.export cannot trace {where}: {first_line(error)}")


def unconvertible(error: BaseException, exported: Any) -> UnsupportedError:
    """The error for a program that torch's exporter cannot write as ONNX."""
    chain = list(_chain(error))
    found = next((match for one in reversed(chain) if (match := _OPERATOR.search(str(one)))), None)
    if found is not None:
        operator = found.group(1)
        return UnsupportedError(
            f"there is no ONNX for the operator {operator}{_graph_place(operator, exported)}",
            hint="write it with other operators",
        )
    last = chain[-1]
    return UnsupportedError(f"the exported program cannot be written as ONNX: {first_line(last)}")


def first_line(error: BaseException) -> str:
    """An error's kind and the first line of what it says, cut where that is long."""
    said = (str(error).strip() or "no reason given").splitlines()[0]
    return f"{type(error).__name__}: {said if len(said) <= _LONG else said[:_LONG].rstrip() + '…'}"


def module_words(path: str, kind: str = "") -> str:
    """A module in a message."""
    name = f"the module {path!r}" if path else "the module itself"
    return f"{name} ({kind})" if kind else name


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, the first cause last."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _python_place(error: BaseException, module: Any) -> str:
    """The innermost line of the model's own code that an error passed, and the module it belongs to."""
    import torch

    library = str(Path(torch.__file__).parent)
    paths = {id(one): path for path, one in module.named_modules()}
    place = inside = None
    for one in _chain(error):
        for frame, line in traceback.walk_tb(one.__traceback__):
            holder = frame.f_locals.get("self")
            if id(holder) in paths:
                inside = paths[id(holder)], type(holder).__name__
            if inside is not None and not _belongs_to(frame, library):
                place = frame.f_code.co_filename, line
        if inside is not None:
            break
    if inside is None:
        return type(module).__name__
    words = module_words(*inside)
    if place is None:
        return words
    code = linecache.getline(*place).strip()
    return f"line {place[1]} of {Path(place[0]).name} in {words}" + (f", `{code}`" if code else "")


def _belongs_to(frame: FrameType, library: str) -> bool:
    name = frame.f_code.co_filename
    return name.startswith((library, "<"))


def _graph_place(operator: str, exported: Any) -> str:
    """The module in which a program has an operator, as ` of the module …`."""
    for program in (exported, None):
        try:
            with quiet():  # operators may have come of others
                nodes = (program or exported.run_decompositions()).graph.nodes
        except Exception:  # the operator may hinder this, too
            return ""
        for node in nodes:
            stack = node.meta.get("nn_module_stack") if str(node.target).startswith(operator) else None
            if stack:
                path, kind = list(stack.values())[-1]
                return f" of {module_words(path, str(kind).rpartition('.')[2])}"
    return ""
