"""The golden check: does this machine give the source model's outputs on the bundle's own rows, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from outrider.runtime.bundle import Bundle
from outrider.runtime.bundle.npy import Array, decode_npy
from outrider.runtime.session import Session

DEFAULT_REPEATS = 200


class GoldenResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a golden check found.

    `max_abs_error` is the largest over all numeric outputs (infinite where a value is missing or not finite on one
    side only). `p99_ms` is the 99th percentile of single-row calls, in milliseconds. `detail` says it in words.
    """

    passed: bool
    max_abs_error: float
    p99_ms: float
    rows: int
    detail: str


def check_golden(session: Session, *, repeats: int = DEFAULT_REPEATS, max_err: float | None = None) -> GoldenResult:
    """Run the golden rows, as float64 too where the session takes that, and the raw ones where there are any, and
    compare; then time `repeats` single rows.

    `max_err` replaces the bundle's absolute tolerance. Labels must be equal. Raises BadBundleError for unreadable
    golden files; an engine's failure is raised as it is.
    """
    golden = session.manifest.golden
    atol = golden.atol if max_err is None else max_err
    expected = _read(session.bundle, golden.outputs)
    inputs = _read(session.bundle, golden.inputs)
    ways = {"": inputs}
    if session.takes_doubles:
        ways[" as float64"] = {name: array.astype(np.float64) for name, array in inputs.items()}
    if golden.raw:
        ways[" from raw data"] = _read(session.bundle, golden.raw)
    error = 0.0
    problems: list[str] = []
    for where, given in ways.items():
        more_error, more_problems = _compare(session.run(given), expected, atol, golden.rtol, where)
        error, problems = max(error, more_error), problems + more_problems
    p99 = _time_rows(session, inputs, golden.rows, repeats)
    detail = "; ".join(problems) or f"{golden.rows} rows agree within {atol:g} + {golden.rtol:g} |value|"
    return GoldenResult(passed=not problems, max_abs_error=error, p99_ms=p99, rows=golden.rows, detail=detail)


def _read(bundle: Bundle, paths: Mapping[str, str]) -> dict[str, Array]:
    return {name: decode_npy(bundle.read(path), origin=path) for name, path in paths.items()}


def _compare(
    outputs: Mapping[str, Array], expected: Mapping[str, Array], atol: float, rtol: float, where: str
) -> tuple[float, list[str]]:
    """The largest absolute error, and one sentence for each output that is out of tolerance."""
    worst, problems = 0.0, []
    for name, wanted in expected.items():
        found = outputs[name]
        if found.shape != wanted.shape:
            worst = np.inf
            problems.append(f"{name}{where} has the shape {found.shape}, not {wanted.shape}")
        elif wanted.dtype.kind != "f":
            wrong = int(np.count_nonzero(found != wanted))
            if wrong:
                problems.append(f"{name}{where} differs in {wrong} of {wanted.size} values")
        else:
            errors = _errors(found.astype(np.float64), wanted.astype(np.float64))
            worst = max(worst, float(errors.max(initial=0.0)))
            wrong = int(np.count_nonzero(errors > atol + rtol * np.abs(np.nan_to_num(wanted.astype(np.float64)))))
            if wrong:
                problems.append(f"{name}{where} is out of tolerance in {wrong} of {wanted.size} values")
    return worst, problems


def _errors(found: Array, wanted: Array) -> Array:
    """Absolute errors; equal infinities and NaN on both sides are no error, on one side an infinite one."""
    with np.errstate(invalid="ignore"):
        errors = np.abs(found - wanted)
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    errors = np.where(same, 0.0, errors)
    return np.where(np.isnan(errors), np.inf, errors)


def _time_rows(session: Session, inputs: Mapping[str, Array], rows: int, repeats: int) -> float:
    """The 99th percentile of single-row calls, milliseconds."""
    samples = []
    call = _row_caller(session, inputs)
    for i in range(max(repeats, 1)):
        start = time.perf_counter()
        call(i % rows)
        samples.append(time.perf_counter() - start)
    return float(np.percentile(samples, 99) * 1e3)


def _row_caller(session: Session, inputs: Mapping[str, Array]) -> Callable[[int], object]:
    if len(inputs) == 1:
        (rows,) = inputs.values()
        return lambda i: session.predict(rows[i : i + 1])
    return lambda i: session.run({name: array[i : i + 1] for name, array in inputs.items()})
