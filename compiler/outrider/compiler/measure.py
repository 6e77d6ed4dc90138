"""Timing candidates against each other: interleaved, so that a busy moment of the machine hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from outrider.compiler.model import Array
from outrider.runtime.bundle import Measurement

BATCHES = (1, 64, 1024)
CROSSOVERS = (8, 16, 32, 64)  # batch sizes at which parts of an artifact, for rows and for batches, are measured
MARGIN = 0.95  # another must take less than this share of the favourite's time, so that noise does not choose
_ROUNDS = 15
_LOOP_NS = 400_000  # CPU time of one timed loop
_SLOWEST_NS = 1_000_000_000  # a batch that would take longer is not measured
_ROWS = 512  # different ones, that calls take in turn
_CALLS = 300  # single calls timed for the percentiles
_CALLS_NS = 2_000_000_000

Inputs = Mapping[str, Array]
Run = Callable[[Inputs], object]


@dataclass(frozen=True)
class Timing:
    """CPU times a batch size, and the wall time of one-row calls in ms."""

    measured: tuple[Measurement, ...]
    p50_ms: float
    p99_ms: float


def measure(runs: Mapping[str, Run], inputs: Inputs, *, batches: Sequence[int] = BATCHES) -> dict[str, Timing]:
    """Time each candidate's `run` on rows of `inputs`, in batches of each size.

    CPU time is that of the whole process, so an engine with threads is charged for all of them; the percentiles
    are of wall time, at the smallest batch.
    """
    found = compare(runs, inputs, dict.fromkeys(runs, tuple(batches)), rounds=_ROUNDS)
    calls = _call_times(runs, _parts(inputs, min(batches)))
    return {
        key: Timing(
            measured=tuple(found[key].values()),
            p50_ms=float(np.percentile(calls[key], 50)),
            p99_ms=float(np.percentile(calls[key], 99)),
        )
        for key in runs
    }


def compare(
    runs: Mapping[str, Run], inputs: Inputs, batches: Mapping[str, Sequence[int]], *, rounds: int
) -> dict[str, dict[int, Measurement]]:
    """CPU times of each candidate at its own batch sizes, by batch size; a batch that takes too long is left out."""
    results: dict[str, dict[int, Measurement]] = {key: {} for key in runs}
    for batch in sorted({batch for wanted in batches.values() for batch in wanted}):
        parts = _parts(inputs, batch)
        taking_part = {key: run for key, run in runs.items() if batch in batches[key]}
        for key, found in _measure_batch(taking_part, parts, batch, rounds).items():
            results[key][batch] = found
    return results


def _measure_batch(runs: Mapping[str, Run], parts: Sequence[Inputs], batch: int, rounds: int) -> dict[str, Measurement]:
    loops = {}
    for key, run in runs.items():
        run(parts[0])
        once = _timed(run, parts, 1)
        if once <= _SLOWEST_NS:
            loops[key] = max(1, int(_LOOP_NS / max(once, 1)))
    times: dict[str, list[float]] = {key: [] for key in loops}
    for _ in range(rounds):
        for key, count in loops.items():
            times[key].append(_timed(runs[key], parts, count) / count / batch)
    return {
        key: Measurement(
            batch=batch,
            threads=1,
            ns_per_row_min=round(min(found), 1),
            ns_per_row_median=round(float(np.median(found)), 1),
            repeats=rounds,
        )
        for key, found in times.items()
    }


def _timed(run: Run, parts: Sequence[Inputs], count: int) -> float:
    taken = list(islice(cycle(parts), count))
    start = time.process_time_ns()
    for rows in taken:
        run(rows)
    return time.process_time_ns() - start


def _call_times(runs: Mapping[str, Run], parts: Sequence[Inputs]) -> dict[str, list[float]]:
    calls: dict[str, list[float]] = {key: [] for key in runs}
    deadline = time.perf_counter_ns() + _CALLS_NS
    for rows in islice(cycle(parts), _CALLS):
        for key, run in runs.items():
            start = time.perf_counter_ns()
            run(rows)
            calls[key].append((time.perf_counter_ns() - start) / 1e6)
        if time.perf_counter_ns() > deadline:
            break
    return calls


def _parts(inputs: Inputs, batch: int) -> list[Inputs]:
    """Batches of different rows, as calls bring them: a branch that is always the same would be predicted.

    From the start again where there are fewer rows.
    """
    count = max(1, _ROWS // batch)
    return [{name: _from(array, number * batch, batch) for name, array in inputs.items()} for number in range(count)]


def _from(array: Array, first: int, rows: int) -> Array:
    return np.ascontiguousarray(array[np.arange(first, first + rows) % len(array)])
