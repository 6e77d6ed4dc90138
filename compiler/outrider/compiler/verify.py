"""Parity: an artifact against the source library itself, on the packaged bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from outrider.compiler.backends import REDUCED
from outrider.compiler.model import Array, Model
from outrider.compiler.samples import Samples
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.rows import double_rows_from_thresholds
from outrider.runtime.bundle import Parity, Signature
from outrider.runtime.calls import Arrays, count_calls, one_call, pick_calls, rows_of_call, run_calls
from outrider.runtime.engines.base import Engine
from outrider.runtime.errors import BadDataError, EngineFault, ParityError
from outrider.runtime.tolerance import Deviation, Tolerance, compare, errors_of

ATOL, RTOL = 1e-6, 1e-5
OF_MAX = 1e-4  # of networks in float32, whose sums cancel: a wrong result is off by far more
HALF_OF_MAX = 1e-2  # the same in float16
WORST_L2 = 0.5  # of a reduced precision: beyond this nothing is left of the source model
_MARGIN = 2.0  # a device may be this much farther off than this machine was, in a reduced precision,
_LEAST_OF_MAX = HALF_OF_MAX  # and this much in any case: it may compute in halves what is only stored in them here
MAX_ROWS = 4096
GOLDEN_ROWS = 64
GOLDEN_BYTES = 4 << 20  # of inputs, but for one row or call that is larger
_SINGLE_ROWS = 8
_SEED = 20240301  # any fixed number: the same model gives the same rows


@dataclass(frozen=True)
class Truth:
    """Rows, or calls, with the source library's outputs for them; where known, what is true of the rows, `targets`, and
    the same as text of class labels, `labels`.

    `doubles`: of a forest, float64 rows and the outputs for them.
    """

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    rows: int
    labels: Array | None
    targets: Array | None
    doubles: tuple[dict[str, Array], dict[str, Array]] | None = None


def comparable(model: Model, samples: Samples) -> Samples:
    """The samples whose outputs fit side by side: where sizes of outputs depend on values, the calls of the most common
    ones. All of any other model.
    """
    if model.signature.batched or not any(None in spec.shape for spec in model.signature.outputs):
        return samples
    calls: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for number in range(samples.rows):
        outputs = model.reference(one_call(samples.inputs, number, batched=False))
        calls.setdefault(tuple(outputs[name].shape for name in model.computed), []).append(number)
    most = np.array(max(calls.values(), key=len))
    return replace(
        samples,
        inputs=pick_calls(samples.inputs, most),
        rows=len(most),
        raw=pick_calls(samples.raw, most),
        labels=None if samples.labels is None else samples.labels[most],
        images=samples.images_of(most),
    )


def source_truth(model: Model, samples: Samples) -> Truth:
    """Run the source library on the samples; of more than MAX_ROWS, on as many spread evenly."""
    inputs = pick_calls(samples.inputs, spread(samples.rows, MAX_ROWS))
    targets = samples.labels
    if targets is not None:
        targets = targets[spread(samples.rows, MAX_ROWS)]
        targets = targets.reshape(-1, *targets.shape[2:]) if rows_of_call(model.signature) else targets
    labels = true_labels(targets, model.signature) if targets is not None and targets.ndim == 1 else None
    outputs = run_calls(model.reference, inputs, batched=model.signature.batched)
    return Truth(inputs, outputs, count_calls(inputs), labels, targets, _doubles(model, inputs, outputs))


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


def tolerance_of(model: Model, precision: str) -> Tolerance:
    """What an artifact of that precision may differ by; of a reduced one, only what no longer resembles the source."""
    if precision in REDUCED:
        return Tolerance(of_max=np.inf, differing=1.0)
    if isinstance(model.payload, Forest):
        return Tolerance(ATOL, RTOL)
    half = any(spec.dtype == "float16" for spec in model.signature.outputs)
    return Tolerance(ATOL, RTOL, of_max=HALF_OF_MAX if half else OF_MAX)


def check_parity(
    model: Model, engine: Engine, truth: Truth, samples: Samples, *, candidate: str, precision: str
) -> Parity:
    """Run the artifact on the same rows, as a batch and one by one, and on float64 rows where it takes such.

    Raises ParityError beyond the tolerance.
    """
    tolerance = tolerance_of(model, precision)
    batched = model.signature.batched
    outputs = _run(engine, truth.inputs, batched, candidate)
    found = _checked(outputs, truth.outputs, truth.inputs, tolerance, candidate)
    if batched:
        count = min(truth.rows, _SINGLE_ROWS)
        singles = [engine.run(one_call(truth.inputs, row, batched=True)) for row in range(count)]
        together = {name: np.concatenate([single[name] for single in singles]) for name in truth.outputs if singles}
        _checked(
            together, pick_calls(truth.outputs, slice(count)), truth.inputs, tolerance, f"{candidate}, single rows"
        )
    if truth.doubles is not None and engine.doubles:
        inputs, wanted = truth.doubles
        _checked(engine.run(inputs), wanted, inputs, tolerance, f"{candidate}, float64 rows")
    if precision in REDUCED:
        if found.l2 > WORST_L2:
            raise ParityError(f"{candidate}: the relative L2 error is {found.l2:.2g}, beyond {WORST_L2:g}")
        tolerance = _of_a_device(found, outputs, truth, samples)
    return Parity(
        rows=truth.rows,
        evidence=samples.evidence,
        max_abs_error=found.absolute,
        max_rel_error=found.relative,
        atol=tolerance.atol,
        rtol=tolerance.rtol,
        of_max=tolerance.of_max,
        differing=tolerance.differing,
        l2_error=None if isinstance(model.payload, Forest) else found.l2,
        passed=True,
    )


def _of_a_device(found: Deviation, outputs: Arrays, truth: Truth, samples: Samples) -> Tolerance:
    """What a device may be off by in a reduced precision, by how far this machine was, on the golden rows too: where
    the largest values are in other rows, errors are a larger part of what is left.
    """
    rows = golden_rows(samples, truth.rows)
    golden = compare(pick_calls(outputs, rows), pick_calls(truth.outputs, rows), Tolerance(of_max=np.inf, differing=1))
    ratios = [found.of_max, golden.of_max]
    atol = ATOL if np.isfinite(golden.of_max) else _MARGIN * golden.absolute  # zeros only are no measure
    of_max = _MARGIN * max(ratio for ratio in ratios if np.isfinite(ratio))
    differing = min(1.0, _MARGIN * max(found.differing, golden.differing) + 0.1)
    return Tolerance(max(ATOL, atol), of_max=max(_LEAST_OF_MAX, of_max), differing=differing)


def golden_rows(samples: Samples, compared: int) -> NDArray[np.intp]:
    """Which of the rows or calls that are compared become golden vectors."""
    each = sum(array.nbytes for array in samples.inputs.values()) // samples.rows
    return spread(compared, max(1, min(GOLDEN_ROWS, GOLDEN_BYTES // max(each, 1))))


def _run(engine: Engine, inputs: Arrays, batched: bool, candidate: str) -> dict[str, Array]:
    try:
        return run_calls(engine.run, inputs, batched=batched)
    except EngineFault as e:
        raise ParityError(f"{candidate}: {e.message}") from e


def _checked(found: Arrays, wanted: Arrays, inputs: Arrays, tolerance: Tolerance, candidate: str) -> Deviation:
    """What was found. Raises ParityError beyond the tolerance, naming the first row that is."""
    deviation = compare(found, wanted, tolerance)
    for name, problem in (deviation.problems or {}).items():
        value, truth = found[name], wanted[name]
        if value.shape != truth.shape:
            raise ParityError(f"{candidate}: {name!r} has the shape {value.shape}, the source gives {truth.shape}")
        wrong = errors_of(value, truth) > tolerance.allowed(truth) if truth.dtype.kind == "f" else value != truth
        row = int(np.argmax(wrong.reshape(len(wrong), -1).any(axis=1)))
        raise ParityError(
            f"{candidate}: {name!r} {problem.replace('is out of tolerance', 'disagrees with the source model')}; "
            f"row {row}: got {_short(value[row])}, the source gives {_short(truth[row])}",
            hint=f"the row's inputs: { {key: _short(array[row]) for key, array in inputs.items()} }",
        )
    return deviation


def _short(values: Array) -> str:
    """An array in a message: a few of its values."""
    return np.array2string(np.asarray(values), threshold=24, edgeitems=8, separator=", ").replace("\n", "")


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
        return label_texts(outputs["label"].reshape(-1))
    if not signature.class_labels:
        return None
    names = np.array([str(label) for label in signature.class_labels])
    scores = outputs[signature.predict]
    if rows_of_call(signature):
        scores = scores.reshape(-1, *scores.shape[2:])
    second = scores.ndim == 1 or scores.shape[1] == 1
    picked = (scores > 0.5).reshape(-1).astype(int) if second else scores.argmax(axis=1)
    return np.asarray(names[picked])
