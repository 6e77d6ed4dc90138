"""The rows that a compile works on: the caller's calibration, rows from a forest's thresholds, or random ones."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.fingerprint import fingerprint
from outrider.compiler.model import LABEL, Array, Model
from outrider.compiler.pictures import read_folder
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.rows import rows_from_thresholds
from outrider.runtime.bundle import Bundle, decode_npy
from outrider.runtime.bundle.manifest import Evidence, Signature, TensorSpec
from outrider.runtime.calls import rows_of_call
from outrider.runtime.errors import BadDataError, NotFoundError

RANDOM_ROWS = 64
_FEWEST_ROWS = 8
_RANDOM_VALUES = 1 << 22  # values in all, beyond which fewer rows are made up
_SEED = 20240229  # any fixed number: the same model gives the same rows


@dataclass(frozen=True)
class Samples:
    """Rows to verify and measure on: `inputs` as in the signature, all of `rows` rows.

    Of a model that is not batched they are whole calls, side by side (`outrider.runtime.calls`). `raw` are the same
    rows as raw columns, `labels` their true labels [rows], or [calls, rows of a call], `images` the images that they
    were made of, call after call; all empty or None where not known.
    """

    inputs: dict[str, Array]
    rows: int
    evidence: Evidence
    raw: dict[str, Array] = field(default_factory=dict)
    labels: Array | None = None
    images: tuple[Array, ...] = ()

    @property
    def real(self) -> bool:
        """Whether these are rows of the caller's, not made up."""
        return self.evidence == "calibration"

    @cached_property
    def prints(self) -> tuple[list[str], list[str]]:
        """What tells these rows, and their labels, from others."""
        return fingerprint(self.inputs), fingerprint({} if self.labels is None else {"": self.labels})

    def images_of(self, rows: NDArray[np.intp]) -> tuple[Array, ...]:
        """The images that these rows were made of, in their order."""
        each = len(self.images) // self.rows
        return tuple(self.images[int(row) * each + place] for row in rows for place in range(each))


def make_samples(
    model: Model, calibration: Any, raw: Mapping[str, Array] | None = None, images: tuple[Array, ...] = ()
) -> Samples:
    """The caller's calibration where given, else made-up rows. Raises BadDataError where it does not fit the model."""
    if calibration is None:
        return _made_up(model)
    signature = model.signature
    given = dict(_arrays(calibration, signature))
    names = {spec.name for spec in signature.inputs}
    labels = given.pop(LABEL, None) if LABEL not in names else None
    unknown, missing = sorted(set(given) - names), sorted(names - set(given))
    if unknown or missing:
        wrong = f"has {unknown[0]!r}, which is no input" if unknown else f"lacks the input {missing[0]!r}"
        raise BadDataError(f"the calibration {wrong}", hint=f"the model's inputs: {', '.join(sorted(names))}")
    whole = rows_of_call(signature)
    inputs = {spec.name: _fit(given[spec.name], spec, signature.batched, whole) for spec in signature.inputs}
    if whole is not None:
        labels = None if labels is None else _whole_calls(np.asarray(labels), whole, LABEL)
        raw = {name: _whole_calls(array, whole, name) for name, array in (raw or {}).items()}
        images = images[: len(images) // whole * whole]
    rows = _common_rows(inputs, labels, raw or {})
    return Samples(inputs=inputs, rows=rows, evidence="calibration", raw=dict(raw or {}), labels=labels, images=images)


def _made_up(model: Model) -> Samples:
    if isinstance(model.payload, Forest):
        rows = rows_from_thresholds(model.payload, seed=_SEED, nan=model.accepts_nan, inf=model.accepts_inf)
        return Samples(inputs={model.signature.inputs[0].name: rows}, rows=len(rows), evidence="thresholds")
    shapes = [spec.shape for spec in model.signature.inputs]
    each = sum(math.prod(size or 1 for size in (shape[1:] if model.signature.batched else shape)) for shape in shapes)
    count = max(_FEWEST_ROWS, min(RANDOM_ROWS, _RANDOM_VALUES // max(each, 1)))
    inputs = random_inputs(model.signature.inputs, count, batched=model.signature.batched, sizes=model.sizes)
    return Samples(inputs=inputs, rows=count, evidence="random")


def random_inputs(
    specs: tuple[TensorSpec, ...],
    rows: int,
    *,
    batched: bool = True,
    sizes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Array]:
    """Normal floats, integers and booleans of 0 and 1, empty text; the same each time.

    `sizes`: the shape of a call where the spec leaves sizes free, by name.
    """
    rng = np.random.default_rng(_SEED)
    result: dict[str, Array] = {}
    for spec in specs:
        call = (sizes or {}).get(spec.name) or tuple(size or 1 for size in spec.shape)
        shape = (rows, *(call[1:] if batched else call))
        if spec.dtype == "string":
            result[spec.name] = np.full(shape, "", object)
        elif spec.dtype.startswith("float"):
            result[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        else:
            result[spec.name] = rng.integers(0, 2, shape).astype(spec.dtype)
    return result


def load_calibration(calibration: Any) -> Any:
    """What a path leads to; anything else as it is. Raises NotFoundError, BadDataError."""
    return _load(Path(calibration)) if isinstance(calibration, str | Path) else calibration


def golden_inputs(bundle: Bundle) -> dict[str, Array]:
    """The inputs of a bundle's golden calls. Raises BadBundleError for unreadable files."""
    return {name: decode_npy(bundle.read(path), origin=path) for name, path in bundle.manifest.golden.inputs.items()}


def examples(calibration: Any) -> dict[str | None, Array]:
    """Arrays by name, or the one under None, as far as that is known before the model is."""
    if calibration is None:
        return {}
    if hasattr(calibration, "columns"):
        try:
            return {None: calibration[[one for one in calibration.columns if str(one) != LABEL]].to_numpy(np.float64)}
        except (TypeError, ValueError):
            return {}
    given = calibration if isinstance(calibration, Mapping) else {None: calibration}
    return {name: _array(array, name) for name, array in given.items()}


def _array(values: Any, name: str | None = None) -> Array:
    """As an array. Raises BadDataError for lists of different lengths."""
    try:
        return np.asarray(values)
    except ValueError as e:
        whose = "" if name is None else f" for {name!r}"
        raise BadDataError(f"the calibration{whose} is no array: {e}") from e


def _arrays(calibration: Any, signature: Signature) -> Mapping[str, Any]:
    """Whatever was given, as one array an input."""
    calibration = load_calibration(calibration)
    if isinstance(calibration, Mapping):
        return calibration
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise BadDataError(f"the model has several inputs: {names}", hint="give calibration as a dict of arrays")
    spec = signature.inputs[0]
    if hasattr(calibration, "columns") and hasattr(calibration, "to_numpy"):
        return _frame(calibration, spec, signature.feature_names)
    return {spec.name: _array(calibration)}


def _frame(frame: Any, spec: TensorSpec, names: tuple[str, ...]) -> dict[str, Array]:
    """A frame's columns in the model's order; a column `label` beside them holds true labels."""
    columns = [str(column) for column in frame.columns]
    result: dict[str, Array] = {}
    if LABEL in columns and LABEL not in names:
        result[LABEL] = frame[frame.columns[columns.index(LABEL)]].to_numpy()
        frame = frame.drop(columns=frame.columns[columns.index(LABEL)])
        columns.remove(LABEL)
    if names and set(names) <= set(columns):
        frame = frame[[frame.columns[columns.index(name)] for name in names]]
    elif names and any(column in names for column in columns):
        missing = next(name for name in names if name not in columns)
        raise BadDataError(f"the calibration frame lacks the column {missing!r}", hint=f"expected: {', '.join(names)}")
    try:
        result[spec.name] = frame.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as e:
        raise BadDataError(f"the calibration frame holds values that are no numbers: {e}") from e
    return result


def _load(path: Path) -> Any:
    if path.is_dir():
        return read_folder(path)
    if not path.is_file():
        raise NotFoundError(f"there is no calibration file {path}")
    if path.suffix == ".parquet":
        import pandas

        try:
            return pandas.read_parquet(path)
        except (ValueError, OSError) as e:
            raise BadDataError(f"{path} is not a readable Parquet file: {e}") from e
    if path.suffix != ".npz":
        raise BadDataError(f"{path} is not a calibration file", hint="give .npz, .parquet or a folder of images")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as e:
        raise BadDataError(f"{path} is not a readable .npz file: {e}") from e


def _fit(array: Any, spec: TensorSpec, batched: bool, whole: int | None) -> Array:
    """The array in the input's dtype. float64 becomes float32; any other change must keep the values."""
    found: NDArray[Any] = np.asarray(array)
    if not batched and found.ndim == len(spec.shape):
        found = found[None] if whole is None else _whole_calls(found, whole, spec.name)
    wanted = spec.shape[1:] if batched else spec.shape
    fits = found.ndim == len(wanted) + 1 and all(
        size in (None, has) for size, has in zip(wanted, found.shape[1:], strict=True)
    )
    if not fits:
        expected = ", ".join("n" if size is None else str(size) for size in ((None,) if batched else ()) + wanted)
        raise BadDataError(
            f"the calibration for {spec.name!r} has the shape {np.shape(array)}, expected ({expected})",
            hint=None if batched else "or several such calls, along one more axis in front",
        )
    if len(found) == 0:
        raise BadDataError(f"the calibration for {spec.name!r} has no rows")
    if spec.dtype == "string":
        return found.astype(object)
    if found.dtype.kind not in "fiub":
        raise BadDataError(f"the calibration for {spec.name!r} holds {found.dtype}, expected {spec.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = np.ascontiguousarray(found, np.dtype(spec.dtype))
    if found.dtype.kind == "f" and not spec.dtype.startswith("float") and not np.array_equal(cast, found):
        raise BadDataError(f"the calibration for {spec.name!r} holds fractions, expected {spec.dtype}")
    return cast


def _whole_calls(array: Array, rows: int, name: str) -> Array:
    """Rows as calls of so many; rows that fill no call are left out. Raises BadDataError for fewer rows."""
    calls = len(array) // rows
    if calls == 0:
        raise BadDataError(f"the calibration has {len(array)} rows for {name!r}, the model takes {rows} at a time")
    return array[: calls * rows].reshape(calls, rows, *array.shape[1:])


def _common_rows(inputs: Mapping[str, Array], labels: Array | None, raw: Mapping[str, Array]) -> int:
    lengths = {name: len(array) for name, array in (*inputs.items(), *raw.items())}
    if labels is not None:
        lengths[LABEL] = len(labels)
    if len(set(lengths.values())) != 1:
        raise BadDataError(f"the calibration's arrays differ in length: {lengths}")
    return next(iter(lengths.values()))
