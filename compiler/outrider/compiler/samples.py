"""The rows that a compile works on: the caller's calibration, rows from a forest's thresholds, or random ones."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.model import LABEL, Array, Model, OnnxGraph
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.rows import rows_from_thresholds
from outrider.runtime.bundle.manifest import Evidence, Signature, TensorSpec
from outrider.runtime.errors import BadDataError, NotFoundError

RANDOM_ROWS = 64
_SEED = 20240229  # any fixed number: the same model gives the same rows


@dataclass(frozen=True)
class Samples:
    """Rows to verify and measure on: `inputs` as in the signature, all of `rows` rows.

    `raw` are the same rows as raw columns, `labels` their true labels [rows]; both empty or None where not known.
    """

    inputs: dict[str, Array]
    rows: int
    evidence: Evidence
    raw: dict[str, Array] = field(default_factory=dict)
    labels: Array | None = None

    @property
    def real(self) -> bool:
        """Whether these are rows of the caller's, not made up."""
        return self.evidence == "calibration"


def make_samples(model: Model, calibration: Any, raw: Mapping[str, Array] | None = None) -> Samples:
    """The caller's calibration where given, else made-up rows. Raises BadDataError where it does not fit the model."""
    if calibration is None:
        return _made_up(model)
    given = dict(_arrays(calibration, model.signature))
    names = {spec.name for spec in model.signature.inputs}
    labels = given.pop(LABEL, None) if LABEL not in names else None
    unknown, missing = sorted(set(given) - names), sorted(names - set(given))
    if unknown or missing:
        wrong = f"has {unknown[0]!r}, which is no input" if unknown else f"lacks the input {missing[0]!r}"
        raise BadDataError(f"the calibration {wrong}", hint=f"the model's inputs: {', '.join(sorted(names))}")
    inputs = {spec.name: _fit(given[spec.name], spec) for spec in model.signature.inputs}
    rows = _common_rows(inputs, labels, raw or {})
    batch = model.payload.batch if isinstance(model.payload, OnnxGraph) else None
    if batch is not None:
        if rows < batch:
            raise BadDataError(f"the calibration has {rows} rows, the model takes {batch} at a time")
        inputs, rows = {name: array[:batch] for name, array in inputs.items()}, batch
        labels = labels[:batch] if labels is not None else None
        raw = {name: array[:batch] for name, array in (raw or {}).items()}
    return Samples(inputs=inputs, rows=rows, evidence="calibration", raw=dict(raw or {}), labels=labels)


def _made_up(model: Model) -> Samples:
    if isinstance(model.payload, Forest):
        rows = rows_from_thresholds(model.payload, seed=_SEED, nan=model.accepts_nan, inf=model.accepts_inf)
        return Samples(inputs={model.signature.inputs[0].name: rows}, rows=len(rows), evidence="thresholds")
    count = model.payload.batch or RANDOM_ROWS
    return Samples(inputs=random_inputs(model.signature.inputs, count), rows=count, evidence="random")


def random_inputs(specs: tuple[TensorSpec, ...], rows: int) -> dict[str, Array]:
    """Normal floats, integers and booleans of 0 and 1, empty text; the same each time."""
    rng = np.random.default_rng(_SEED)
    result: dict[str, Array] = {}
    for spec in specs:
        shape = (rows, *(size for size in spec.shape[1:] if size is not None))
        if spec.dtype == "string":
            result[spec.name] = np.full(shape, "", object)
        elif spec.dtype.startswith("float"):
            result[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        else:
            result[spec.name] = rng.integers(0, 2, shape).astype(spec.dtype)
    return result


def _arrays(calibration: Any, signature: Signature) -> Mapping[str, Any]:
    """Whatever was given, as one array an input."""
    if isinstance(calibration, str | Path):
        calibration = _load(Path(calibration))
    if isinstance(calibration, Mapping):
        return calibration
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise BadDataError(f"the model has several inputs: {names}", hint="give calibration as a dict of arrays")
    spec = signature.inputs[0]
    if hasattr(calibration, "columns") and hasattr(calibration, "to_numpy"):
        return _frame(calibration, spec, signature.feature_names)
    return {spec.name: np.asarray(calibration)}


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
    if not path.is_file():
        raise NotFoundError(f"there is no calibration file {path}")
    if path.suffix == ".parquet":
        import pandas

        try:
            return pandas.read_parquet(path)
        except (ValueError, OSError) as e:
            raise BadDataError(f"{path} is not a readable Parquet file: {e}") from e
    if path.suffix != ".npz":
        raise BadDataError(f"{path} is not a calibration file", hint="give .npz or .parquet")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as e:
        raise BadDataError(f"{path} is not a readable .npz file: {e}") from e


def _fit(array: Any, spec: TensorSpec) -> Array:
    """The array in the input's dtype. float64 becomes float32; any other change must keep the values."""
    found: NDArray[Any] = np.asarray(array)
    expected = ", ".join("n" if size is None else str(size) for size in spec.shape)
    if found.ndim != len(spec.shape) or found.shape[1:] != spec.shape[1:]:
        raise BadDataError(f"the calibration for {spec.name!r} has the shape {found.shape}, expected ({expected})")
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


def _common_rows(inputs: Mapping[str, Array], labels: Array | None, raw: Mapping[str, Array]) -> int:
    lengths = {name: len(array) for name, array in (*inputs.items(), *raw.items())}
    if labels is not None:
        lengths[LABEL] = len(labels)
    if len(set(lengths.values())) != 1:
        raise BadDataError(f"the calibration's arrays differ in length: {lengths}")
    return next(iter(lengths.values()))
