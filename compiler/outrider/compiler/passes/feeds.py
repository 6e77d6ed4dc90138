"""Calibration feeds: real inputs of a model, checked before anything runs on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.passes.graph import Dims, inputs_of, types
from outrider.runtime.errors import BadDataError

if TYPE_CHECKING:
    import onnx

Feed = Mapping[str, NDArray[Any]]  # an array for each input of the model

LEAST_SAMPLES = 4  # fewer say too little about the range of an activation


def check_feeds(model: onnx.ModelProto, feeds: Sequence[Feed]) -> None:
    """Raises BadDataError for feeds that the model does not take, that hold NaN or infinity, or that are too few.

    A feed counts as many samples as the first axis of its first input is long.
    """
    needed = [value.name for value in inputs_of(model.graph)]
    taken = {value.name for value in model.graph.input}
    known = types(model.graph)
    samples = 0
    for number, feed in enumerate(feeds):
        missing = [name for name in needed if name not in feed]
        unknown = [name for name in feed if name not in taken]
        if missing or unknown:
            wrong = f"lacks the input {missing[0]!r}" if missing else f"has {unknown[0]!r}, which is no input"
            raise BadDataError(f"calibration feed {number} {wrong}", hint=f"the inputs: {', '.join(map(repr, needed))}")
        for name, values in feed.items():
            if name in known:
                _check_array(f"input {name!r} of calibration feed {number}", np.asarray(values), *known[name])
        first = np.shape(feed[needed[0]]) if needed else ()
        samples += first[0] if first else 1
    if samples < LEAST_SAMPLES:
        raise BadDataError(
            f"there are {samples} calibration samples, at least {LEAST_SAMPLES} are needed",
            hint="give real inputs, some dozens of them",
        )


def _check_array(what: str, values: NDArray[Any], kind: int, dims: Dims | None) -> None:
    import onnx

    wanted = onnx.helper.tensor_dtype_to_np_dtype(kind)
    if values.dtype != wanted:
        raise BadDataError(f"the {what} is {values.dtype}, the model takes {wanted}")
    fits = dims is None or (
        len(dims) == values.ndim and all(dim in (None, size) for dim, size in zip(dims, values.shape, strict=True))
    )
    if not fits:
        shape = "x".join("?" if dim is None else str(dim) for dim in dims or ())
        raise BadDataError(f"the {what} has the shape {values.shape}, the model takes {shape or 'a single number'}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadDataError(f"the {what} holds {'NaN' if np.isnan(values).any() else 'infinity'}")
