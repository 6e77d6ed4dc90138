"""Parity: an artifact against the source library itself, on the packaged bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.model import Array, Model, OnnxGraph
from outrider.compiler.samples import Samples
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.rows import double_rows_from_thresholds
from outrider.runtime.bundle import Parity, Signature
from outrider.runtime.engines.base import Engine
from outrider.runtime.errors import BadDataError, ParityError

ATOL, RTOL = 1e-6, 1e-5
MAX_ROWS = 4096
_SINGLE_ROWS = 8
_SEED = 20240301  # any fixed number: the same model gives the same rows


@dataclass(frozen=True)
class Truth:
    """Rows with the source library's outputs for them, and their true labels as text [rows] where known.

    `doubles`: of a forest, float64 rows and the outputs for them.
    """

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    rows: int
    labels: Array | None
    doubles: tuple[dict[str, Array], dict[str, Array]] | None = None


def source_truth(model: Model, samples: Samples) -> Truth:
    """Run the source library on the samples; of more than MAX_ROWS, on as many spread evenly."""
    picked = spread(samples.rows, MAX_ROWS)
    inputs = {name: np.ascontiguousarray(array[picked]) for name, array in samples.inputs.items()}
    labels = None if samples.labels is None else true_labels(samples.labels[picked], model.signature)
    outputs = model.reference(inputs)
    return Truth(inputs, outputs, len(picked), labels, _doubles(model, inputs, outputs))


def _doubles(
    model: Model, inputs: Mapping[str, Array], outputs: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]] | None:
    """Float64 rows and the source's outputs. For one that rounds them, some that round to the rows it was asked for."""
    if not isinstance(model.payload, Forest):
        return None
    ((name, rows),) = inputs.items()
    if model.decides_in == "float32":
        return {name: _rounding_to(rows)}, outputs
    doubles = double_rows_from_thresholds(model.payload, seed=_SEED, nan=model.accepts_nan, inf=model.accepts_inf)
    return {name: doubles}, model.reference({name: doubles})


def _rounding_to(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Doubles that round to these float32, up to nearly half of the way to their neighbours."""
    rng = np.random.default_rng(_SEED)
    wide = rows.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        beside = np.nextafter(rows, rng.choice(np.array([-np.inf, np.inf], np.float32), rows.shape))
        moved = wide + (beside.astype(np.float64) - wide) * rng.choice([0.0, 0.3, 0.499], rows.shape)
    return np.where(np.isfinite(moved), moved, wide)


def spread(rows: int, count: int) -> NDArray[np.intp]:
    """At most `count` row numbers, evenly over all rows."""
    return np.unique(np.linspace(0, rows - 1, min(rows, count)).round().astype(np.intp))


def check_parity(model: Model, engine: Engine, truth: Truth, samples: Samples, *, candidate: str) -> Parity:
    """Run the artifact on the same rows, as a batch and one by one, and on float64 rows where it takes such.

    Raises ParityError beyond the tolerance.
    """
    found = engine.run(truth.inputs)
    worst = _compare(found, truth.outputs, truth.inputs, candidate)
    if not (isinstance(model.payload, OnnxGraph) and model.payload.batch is not None):
        for row in range(min(truth.rows, _SINGLE_ROWS)):
            single = {name: array[row : row + 1] for name, array in truth.inputs.items()}
            wanted = {name: array[row : row + 1] for name, array in truth.outputs.items()}
            _compare(engine.run(single), wanted, single, candidate)
    if truth.doubles is not None and engine.doubles:
        inputs, outputs = truth.doubles
        _compare(engine.run(inputs), outputs, inputs, f"{candidate}, float64 rows")
    return Parity(
        rows=truth.rows,
        evidence=samples.evidence,
        max_abs_error=worst[0],
        max_rel_error=worst[1],
        atol=ATOL,
        rtol=RTOL,
        passed=True,
    )


def _compare(
    found: Mapping[str, Array], wanted: Mapping[str, Array], inputs: Mapping[str, Array], candidate: str
) -> tuple[float, float]:
    """The largest absolute and relative errors."""
    worst_abs = worst_rel = 0.0
    for name, truth in wanted.items():
        value = found[name]
        if value.shape != truth.shape:
            raise ParityError(f"{candidate}: {name!r} has the shape {value.shape}, the source gives {truth.shape}")
        if truth.dtype.kind != "f":
            errors, allowed = (value != truth).astype(np.float64), np.zeros(truth.shape)
        else:
            errors, allowed = _errors(value.astype(np.float64), truth.astype(np.float64))
        over = errors > allowed
        if over.any():
            row = int(np.argmax(over.reshape(len(over), -1).any(axis=1)))
            raise ParityError(
                f"{candidate}: {name!r} disagrees with the source model in {int(over.sum())} of {over.size} values; "
                f"row {row}: got {value[row]}, the source gives {truth[row]}",
                hint=f"the row's inputs: { {key: array[row].tolist() for key, array in inputs.items()} }"[:2000],
            )
        if truth.dtype.kind == "f" and errors.size:
            scale = np.abs(np.nan_to_num(truth.astype(np.float64)))
            worst_abs = max(worst_abs, float(errors.max()))
            worst_rel = max(worst_rel, float((errors / np.where(scale > 0, scale, np.inf)).max()))
    return worst_abs, worst_rel


def _errors(value: Array, truth: Array) -> tuple[Array, Array]:
    """Absolute errors and what is allowed; equal infinities and NaN in the same places are no error."""
    with np.errstate(invalid="ignore", over="ignore"):
        errors = np.abs(value - truth)
    same = (value == truth) | (np.isnan(value) & np.isnan(truth))
    errors = np.where(same, 0.0, np.where(np.isfinite(errors), errors, np.inf))
    return errors, ATOL + RTOL * np.abs(np.nan_to_num(truth, posinf=0.0, neginf=0.0))


def label_texts(labels: Array) -> Array:
    """Labels as text, whole floats as integers: so that 1.0, 1 and "1" are the same label."""
    if labels.dtype.kind == "f" and np.array_equal(labels, np.round(labels)):
        labels = labels.astype(np.int64)
    return np.asarray(labels.astype(np.int64) if labels.dtype.kind == "b" else labels).astype(str)


def true_labels(labels: Array, signature: Signature) -> Array:
    """True labels as the text of class labels. Where class labels are text, numbers stand for their places.

    Raises BadDataError for a label that the model does not know.
    """
    texts = label_texts(labels)
    names = [str(label) for label in signature.class_labels]
    unknown = sorted(set(texts.tolist()) - set(names))
    if not names or not unknown:
        return texts
    places = {str(place): name for place, name in enumerate(names)}
    if set(texts.tolist()) <= set(places) and all(isinstance(label, str) for label in signature.class_labels):
        return np.array([places[text] for text in texts.tolist()])
    raise BadDataError(
        f"the calibration's label {unknown[0]!r} is no class of the model", hint=f"its classes: {', '.join(names)}"
    )


def labels_of(outputs: Mapping[str, Array], signature: Signature) -> Array | None:
    """The predicted class label of each row [n], as text, for classifiers; None for other models."""
    if "label" in outputs:
        return label_texts(outputs["label"])
    if not signature.class_labels:
        return None
    names = np.array([str(label) for label in signature.class_labels])
    scores = outputs[signature.predict]
    picked = (scores > 0.5).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
    return np.asarray(names[picked])
