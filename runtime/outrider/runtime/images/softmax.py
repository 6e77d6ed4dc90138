"""Softmax, and the other activations of scores."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from outrider.runtime.images.plan import Activation, Label, Softmax
from outrider.runtime.images.results import ImageResult

Floats = NDArray[np.float64]


def apply(step: Softmax, result: ImageResult, _labels: tuple[Label, ...]) -> ImageResult:
    """The result with `step.output` replaced, in its own dtype where that is a float, else in float32."""
    found: NDArray[Any] = result.outputs[step.output]
    dtype = found.dtype if found.dtype.kind == "f" else np.dtype(np.float32)
    changed = activate("softmax", found.astype(np.float64)).astype(dtype)
    return msgspec.structs.replace(result, outputs={**result.outputs, step.output: changed})


def activate(activation: Activation, values: Floats) -> Floats:
    """`softmax` along the last axis, `sigmoid` of each value, or the values as they are."""
    if activation == "none":
        return values
    if activation == "sigmoid":
        shrunk = np.exp(-np.abs(values))
        return np.where(values >= 0, 1 / (1 + shrunk), shrunk / (1 + shrunk))
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
