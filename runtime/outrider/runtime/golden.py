"""The golden check: does this machine give the source model's outputs on the bundle's own rows, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from outrider.runtime.bundle import Bundle
from outrider.runtime.bundle.npy import Array, decode_npy
from outrider.runtime.calls import one_call, pick_calls, run_calls
from outrider.runtime.session import Session
from outrider.runtime.tolerance import Tolerance, compare

DEFAULT_REPEATS = 200
TIMING_S = 10.0  # after which no further call is timed: a large net takes seconds a call on a small board


class GoldenResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a golden check found.

    `max_abs_error` is the largest over all numeric outputs (infinite where a value is missing or not finite on one
    side only). `p50_ms` and `p99_ms` are percentiles of single-row calls, in milliseconds. `detail` says it in words.
    """

    passed: bool
    max_abs_error: float
    p50_ms: float
    p99_ms: float
    rows: int
    detail: str


def check_golden(session: Session, *, repeats: int = DEFAULT_REPEATS, max_err: float | None = None) -> GoldenResult:
    """Run the golden rows, as float64 too where the session takes that, and the raw ones where there are any (of
    images those that are there), and compare; then time `repeats` single rows, or as many as `TIMING_S` seconds allow.

    What is allowed is what the candidate in use was allowed when it was compiled; `max_err` replaces the absolute
    part. Labels must be equal, unless the candidate has a reduced precision. Raises BadBundleError for unreadable
    golden files; an engine's failure is raised as it is.
    """
    golden = session.manifest.golden
    allowed = _allowed(session, max_err)
    expected = _read(session.bundle, golden.outputs)
    inputs = _read(session.bundle, golden.inputs)
    ways = {"": inputs}
    if session.takes_doubles:
        ways[" as float64"] = {name: array.astype(np.float64) for name, array in inputs.items()}
    if golden.raw and session.manifest.images is None:
        ways[" from raw data"] = _read(session.bundle, golden.raw)
    batched = session.signature.batched
    error = 0.0
    problems: list[str] = []
    tries = [(where, given, expected) for where, given in ways.items()]
    if golden.raw and session.manifest.images is not None:
        from outrider.runtime.images.golden import from_raw

        chosen, given = from_raw(session.images, inputs, _read(session.bundle, golden.raw))
        tries.append((" from raw images", given, pick_calls(expected, chosen)))
    for where, given, wanted in tries:
        found = compare(run_calls(session.run, given, batched=batched), wanted, allowed)
        error = max(error, found.absolute)
        problems += [f"{name}{where} {problem}" for name, problem in (found.problems or {}).items()]
    p50, p99 = _time_rows(session, inputs, golden.rows, repeats)
    detail = "; ".join(problems) or f"{golden.rows} rows agree within {allowed}"
    return GoldenResult(
        passed=not problems, max_abs_error=error, p50_ms=p50, p99_ms=p99, rows=golden.rows, detail=detail
    )


def _read(bundle: Bundle, paths: Mapping[str, str]) -> dict[str, Array]:
    return {name: decode_npy(bundle.read(path), origin=path) for name, path in paths.items()}


def _allowed(session: Session, max_err: float | None) -> Tolerance:
    golden, parity = session.manifest.golden, session.candidate.parity
    known = parity or golden
    atol = known.atol if max_err is None else max_err
    if parity is None:
        return Tolerance(atol, golden.rtol)
    return Tolerance(atol, parity.rtol, parity.of_max if max_err is None else 0.0, parity.differing)


def _time_rows(session: Session, inputs: Mapping[str, Array], rows: int, repeats: int) -> tuple[float, float]:
    """The median and 99th percentile of calls of one row, or of whole ones of a model that is not batched, ms."""
    samples: list[float] = []
    call = _caller(session, inputs)
    end = time.perf_counter() + TIMING_S
    for i in range(max(repeats, 1)):
        start = time.perf_counter()
        call(i % rows)
        now = time.perf_counter()
        samples.append(now - start)
        if now > end:
            break
    median, slow = np.percentile(samples, (50, 99)) * 1e3
    return float(median), float(slow)


def _caller(session: Session, inputs: Mapping[str, Array]) -> Callable[[int], object]:
    batched = session.signature.batched
    if len(inputs) == 1:
        (rows,) = inputs.values()
        return lambda i: session.predict(rows[i : i + 1] if batched else np.asarray(rows[i]))
    return lambda i: session.run(one_call(inputs, i, batched=batched))
