"""Passes: ONNX model -> ONNX model. One module each, imported only when it is asked.

`PASSES` is the table of those that need nothing but the model; a new one is one module with a function of the
interface `Pass` and one line here. What wants calibration data beside it is in `int8` and `mixed`, what wants sizes
is `shapes.bind`.

Whatever a pass does, the model keeps the names, types, sizes and order of its inputs and outputs, and gives the same
values to within the rounding of its precision.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import onnx


class Pass(Protocol):
    """Rewrites a model. The argument is left as it was; what comes back is another model, even where nothing changed.

    Raises BadModelError where weights are in other files and were not read, UnsupportedError where it cannot be done.
    """

    def __call__(self, model: onnx.ModelProto, /) -> onnx.ModelProto:
        """The model rewritten."""
        ...


PASSES: dict[str, str] = {
    "shapes": "outrider.compiler.passes.shapes:infer",
    "simplify": "outrider.compiler.passes.simplify:simplify",
    "fold": "outrider.compiler.passes.fold:fold",
    "clip": "outrider.compiler.passes.clip:clip",
    "batchnorm": "outrider.compiler.passes.batchnorm:batchnorm",
    "fp16": "outrider.compiler.passes.fp16:fp16",
}

# Clip comes behind batchnorm, which may bring it next to other activations; what both leave behind is swept up last.
TIDY = ("shapes", "simplify", "fold", "batchnorm", "clip", "simplify", "shapes")


def get_pass(name: str) -> Pass:
    """The pass of that name."""
    made: Pass = pkgutil.resolve_name(PASSES[name])
    return made


def tidy(model: onnx.ModelProto, names: Sequence[str] = TIDY) -> onnx.ModelProto:
    """The model after these passes, by default all that keep its precision."""
    for name in names:
        model = get_pass(name)(model)
    return model


__all__ = ["PASSES", "TIDY", "Pass", "get_pass", "tidy"]
