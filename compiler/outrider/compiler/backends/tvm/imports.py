"""ONNX bytes -> a module of Relax, TVM's graph language.

TVM's importer turns the bounds of `Clip` into a computation of isnan and where, and the clipping itself into opaque
loops that no layout pass sees through, so that each is wrapped in transposes and fused with nothing. Here `Clip`
becomes the plain `maximum` and `minimum` that it is; so do `Max` and `Min` of two operands, which TVM stacks and
reduces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from outrider.compiler.foreign import first_line
from outrider.compiler.passes.graph import opset
from outrider.runtime.errors import BadModelError, UnsupportedError

if TYPE_CHECKING:
    import tvm

_PAIRS = {"Max": "maximum", "Min": "minimum"}
_CLIP_BOUNDS = ("Max", 1, -np.inf), ("Min", 2, np.inf)  # what applies a bound, its place among the inputs, its default


def import_onnx(data: bytes, shapes: Mapping[str, Sequence[int | str]] | None = None) -> tvm.IRModule:
    """Read a serialised ONNX model; `shapes` binds inputs of that name, a dimension that stays free is a text.

    The function `main` takes the model's inputs and gives its output, or a tuple of them; weights are constants in it.
    Raises BadModelError for what is no sound ONNX file or does not fit the shapes, UnsupportedError for an operator
    that TVM does not import.
    """
    import onnx
    import tvm
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError) as e:
        raise BadModelError(f"the ONNX file cannot be read: {first_line(e)}") from e
    graph = model.graph
    taken = {value.name for value in graph.input}
    unknown = [name for name in shapes or {} if name not in taken]
    if unknown:
        raise BadModelError(f"the model has no input {unknown[0]!r}", hint=f"its inputs: {', '.join(sorted(taken))}")
    importer = _importer()({name: list(shape) for name, shape in (shapes or {}).items()}, "float32")
    try:
        return importer.from_onnx(graph, opset(model) or 1)
    except (NotImplementedError, tvm.error.OpNotImplemented) as e:
        raise UnsupportedError(f"TVM does not import the model: {first_line(e)}") from e
    except Exception as e:  # its converters raise whatever they happen to trip over
        raise UnsupportedError(f"TVM does not import the model: {type(e).__name__}: {first_line(e)}") from e


def _importer() -> Any:
    """TVM's importer with converters of our own before its."""
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

    class Importer(ONNXGraphImporter):  # type: ignore[misc]
        def _convert_operator(self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int) -> Any:
            if op_name == "Clip" and (found := self._clip(inputs, attrs)) is not None:
                return found
            if op_name in _PAIRS and len(inputs) == 2:
                return self._pair(op_name, inputs[0], inputs[1])
            return super()._convert_operator(op_name, inputs, attrs, opset)

        def _clip(self, inputs: Any, attrs: dict[str, Any]) -> Any:
            """`x` between its bounds; None where a bound is not known now."""
            x = inputs[0]
            dtype = str(x.ty.dtype)
            bounds = []
            for op, place, default in _CLIP_BOUNDS:
                bound = attrs.get(op.lower(), default)
                if place < len(inputs) and inputs[place] is not None:
                    known = self._known(inputs[place])
                    if known is None:
                        return None
                    bound = known
                if not np.isnan(bound) and not np.isinf(bound):  # NaN bounds nothing, as in ONNX Runtime
                    bounds.append((op, bound))
            for op, bound in bounds:
                x = self._pair(op, relax.const(bound, dtype), x)
            return x

        def _known(self, bound: Any) -> Any:
            """A bound's value: that of a constant, or of a cast of one, as exporters leave them."""
            if isinstance(bound, relax.Var):
                bound = self.bb.lookup_binding(bound)
            if isinstance(bound, tvm.ir.GenericConst):
                return bound.value.numpy().reshape(-1)[0].item()
            cast = isinstance(bound, relax.Call) and bound.op == tvm.ir.Op.get("relax.astype")
            return self._known(bound.args[0]) if cast else None

        def _pair(self, op: str, left: Any, right: Any) -> Any:
            return self.bb.emit(getattr(relax.op, _PAIRS[op])(left, right))

    return Importer
