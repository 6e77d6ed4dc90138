"""Arrays against a signature: what a session accepts, and what it derives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from outrider.runtime.bundle.manifest import Signature, TensorSpec
from outrider.runtime.engines.base import Array, numpy_dtype
from outrider.runtime.errors import BadDataError

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def check_inputs(inputs: Mapping[str, Any], signature: Signature, *, doubles: bool = False) -> dict[str, Array]:
    """The inputs as C-contiguous, aligned arrays, each of the name, dtype and shape that the signature says.

    `doubles`: an only input may be float64 where the signature says float32. Arrays that already fit are passed on as
    they are. Raises BadDataError naming the input and what was expected.
    """
    names = [spec.name for spec in signature.inputs]
    if set(inputs) != set(names):
        given = ", ".join(sorted(map(str, inputs))) or "nothing"
        raise BadDataError(f"got the inputs {given}; expected {', '.join(names)}")
    doubles = doubles and len(names) == 1
    checked = {spec.name: _check_array(spec, inputs[spec.name], signature, doubles) for spec in signature.inputs}
    rows = {name: len(array) for name, array in checked.items()} if signature.batched else {}
    if len(set(rows.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in rows.items())
        raise BadDataError(f"the inputs differ in their number of rows: {listed}")
    return checked


def derive(name: str, outputs: Mapping[str, Array], signature: Signature) -> Array:
    """The output that no artifact computes: a target's columns of `probabilities`, or else the class label."""
    columns = signature.target_columns().get(name)
    if columns is None:
        return derive_label(outputs, signature)
    return np.ascontiguousarray(outputs["probabilities"][:, columns])


def derive_label(outputs: Mapping[str, Array], signature: Signature) -> Array:
    """The class label of each row: from `probabilities`, `score` or the main output, whichever is computed first.

    A vector is the probability of the second class, a matrix has a column for each class; ties go to the first.
    """
    source = next(outputs[name] for name in ("probabilities", "score", signature.predict) if name in outputs)
    second = source.ndim == 1 or (source.shape[1] == 1 and len(signature.class_labels) == 2)
    chosen = source > 0.5 if second else source.argmax(axis=1)
    labels: Array = class_labels(signature)[chosen.reshape(-1).astype(np.intp)]
    return labels


def class_labels(signature: Signature) -> Array:
    """The class labels as an array: int64, text, or objects where both kinds are mixed."""
    kinds = {type(label) for label in signature.class_labels}
    if kinds == {int}:
        return np.array(signature.class_labels, np.int64)
    return np.array(signature.class_labels, np.str_ if kinds == {str} else object)


def is_frame(x: object) -> bool:
    """Whether `x` looks like a DataFrame (pandas, polars); none of them is imported."""
    return hasattr(x, "columns") and hasattr(x, "to_numpy") and hasattr(x, "__getitem__")


def frame_to_matrix(frame: Any, names: tuple[str, ...], *, doubles: bool = False) -> Array:
    """A DataFrame's columns as a matrix, by name and in the model's order. Raises BadDataError for other names.

    With `doubles`, columns of numbers and booleans that are not all float32 give a float64 matrix: integers beyond 2^53
    are rounded, and missing values become NaN.
    """
    columns = [str(column) for column in frame.columns]
    if names:
        missing = [name for name in names if name not in columns]
        unknown = [column for column in columns if column not in names]
        if missing or unknown or len(columns) != len(names):
            parts = [f"lacks {_some(missing)}"] if missing else []
            parts += [f"has unknown {_some(unknown)}"] if unknown else []
            raise BadDataError(f"the DataFrame {' and '.join(parts) or 'has a column twice'}")
        if columns != list(names):
            frame = frame[list(names)]
    if not doubles:
        return np.asarray(frame.to_numpy())
    dtypes = set(frame.dtypes)
    if all(map(_is_number, dtypes)) and dtypes not in ({_FLOAT32}, {_FLOAT64}):
        return np.asarray(frame.to_numpy(dtype=np.float64, na_value=np.nan))
    matrix = np.asarray(frame.to_numpy())
    fits = matrix.dtype == np.float32 or matrix.dtype.kind not in "fiub"
    return matrix if fits else matrix.astype(np.float64, copy=False)


def _is_number(dtype: Any) -> bool:
    """Whether a pandas column of this type holds numbers or booleans, or categories that are such."""
    categories = getattr(dtype, "categories", None)
    return getattr(dtype if categories is None else categories.dtype, "kind", "O") in "fiub"


def _check_array(spec: TensorSpec, value: Any, signature: Signature, doubles: bool) -> Array:
    if not isinstance(value, np.ndarray):
        raise BadDataError(
            f"the input {spec.name!r} is a {type(value).__name__}; expected {_describe(spec)}",
            hint=f"np.asarray(x, np.{spec.dtype})" if spec.dtype != "string" else None,
        )
    wanted = numpy_dtype(spec.dtype)
    if wanted.hasobject and value.dtype.kind in "UO":
        value = value.astype(object, copy=False)
    if value.dtype != wanted and not (doubles and spec.dtype == "float32" and value.dtype == np.float64):
        raise BadDataError(
            f"the input {spec.name!r} is {value.dtype}; expected {_describe(spec)}",
            hint=f"convert it with .astype(np.{spec.dtype})" if not wanted.hasobject else None,
        )
    shape = value.shape
    fits = len(shape) == len(spec.shape) and all(
        size is None or size == found for size, found in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        missing_batch = len(shape) == len(spec.shape) - 1 and shape == spec.shape[1:]
        hint = "one row is x.reshape(1, -1)" if missing_batch and len(shape) == 1 else None
        if hint is None and signature.feature_names and len(shape) == len(spec.shape) == 2:
            hint = f"columns: {_some(list(signature.feature_names))}"
        raise BadDataError(
            f"the input {spec.name!r} has the shape {_show(shape)}; expected {_describe(spec)}", hint=hint
        )
    plain = value.flags.c_contiguous and value.flags.aligned
    return value if plain else np.require(value, requirements=("C", "A"))


def _describe(spec: TensorSpec) -> str:
    return f"{spec.dtype} of shape {_show(spec.shape)}"


def _show(shape: tuple[int | None, ...]) -> str:
    sizes = ", ".join("n" if size is None else str(size) for size in shape)
    return f"({sizes},)" if len(shape) == 1 else f"({sizes})"


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
