"""Raise a model to a later version of ONNX's operators, for what only later ones can say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider.compiler.passes.graph import copied, opset
from outrider.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx

WITH_AXES = 13  # from here on, DequantizeLinear takes a scale for each channel


def raised(model: onnx.ModelProto, least: int = WITH_AXES) -> onnx.ModelProto:
    """The model with the operators of version `least`; as it was where its own are of that version or a later one.

    Raises UnsupportedError where an operator of the model has no form in that version.
    """
    from onnx import version_converter

    made = copied(model)
    if opset(made) >= least:
        return made
    try:
        converted = version_converter.convert_version(made, least)
    except Exception as e:  # of several kinds, of which some are not exported
        reason = (str(e).strip().splitlines() or [type(e).__name__])[-1]
        raise UnsupportedError(
            f"the model cannot be raised from version {opset(made)} of ONNX's operators to {least}: {reason}",
            hint="export it again with a later opset",
        ) from e
    converted.ir_version = max(converted.ir_version, made.ir_version)
    for new, old in ((converted.graph.input, made.graph.input), (converted.graph.output, made.graph.output)):
        kept = [*old]  # the converter may write sizes and types in another way
        del new[:]
        new.extend(kept)
    return converted
