"""Timing candidates against each other: interleaved, so that a busy moment of the machine hits all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from outrider.compiler.model import Array
from outrider.runtime.bundle import Measurement
from outrider.runtime.calls import count_calls, one_call

BATCHES = (1, 64, 1024)
CROSSOVERS = (8, 16, 32, 64)  # batch sizes at which parts of an artifact, for rows and for batches, are measured
_ROUNDS, _MOST_ROUNDS = 15, 60
_SURE = 0.01  # half the width of the median's confidence interval, as a share of it, with which rounds end
_ROUNDS_NS = 3_000_000_000  # CPU time after which they end at one batch size, sure or not
_LOOP_NS = 400_000  # CPU time of one timed loop
_SLOWEST_NS = 1_000_000_000  # a batch that would take longer is not measured
_ROWS = 512  # different ones, that calls take in turn
_BYTES = 64 << 20  # the same, at most
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


@dataclass(frozen=True)
class Load:
    """What calls are made of: `inputs` side by side, of which a batched model takes any number of rows in a call.

    Of any other model a call is one of them, and its size in rows is `rows`. `sizes`: of the batches that decide.
    """

    inputs: Inputs
    batched: bool = True
    rows: int = 1
    sizes: tuple[int, ...] = BATCHES
    threads: int = 1

    @property
    def batches(self) -> tuple[int, ...]:
        """The sizes of batches that there are."""
        return self.sizes if self.batched else (self.rows,)

    def parts(self, batch: int) -> list[Inputs]:
        """Batches of different rows, as calls bring them: a branch that is always the same would be predicted.

        From the start again where there are fewer rows.
        """
        each = sum(array[:1].nbytes for array in self.inputs.values())
        most = max(1, min(_ROWS, _BYTES // max(each, 1)))
        if not self.batched:
            return [one_call(self.inputs, i, batched=False) for i in range(min(most, count_calls(self.inputs)))]
        count = max(1, most // batch)
        return [{name: _from(a, number * batch, batch) for name, a in self.inputs.items()} for number in range(count)]


def measure(runs: Mapping[str, Run], load: Load) -> dict[str, Timing]:
    """Time each candidate's `run` on rows of the load, in batches of each size.

    CPU time is that of the whole process, so an engine with threads is charged for all of them; the percentiles
    are of wall time, at the smallest batch. Rounds go on until each median is known to 1 %, or for 3 s a batch size.
    """
    found = compare(runs, load, dict.fromkeys(runs, load.batches), rounds=_ROUNDS, most=_MOST_ROUNDS)
    calls = _call_times(runs, load.parts(min(load.batches)))
    return {
        key: Timing(
            measured=tuple(found[key].values()),
            p50_ms=float(np.percentile(calls[key], 50)),
            p99_ms=float(np.percentile(calls[key], 99)),
        )
        for key in runs
    }


def compare(
    runs: Mapping[str, Run],
    load: Load,
    batches: Mapping[str, Sequence[int]],
    *,
    rounds: int,
    most: int | None = None,
) -> dict[str, dict[int, Measurement]]:
    """CPU times of each candidate at its own batch sizes, by batch size; a batch that takes too long is left out."""
    results: dict[str, dict[int, Measurement]] = {key: {} for key in runs}
    for batch in sorted({batch for wanted in batches.values() for batch in wanted}):
        able = [key for key in runs if batch in batches[key] and _expected(results[key], batch) <= _SLOWEST_NS]
        taking_part = {key: runs[key] for key in able}
        for key, found in _measure_batch(taking_part, load, batch, rounds, most or rounds).items():
            results[key][batch] = found
    return results


def _expected(known: Mapping[int, Measurement], batch: int) -> float:
    """The time of a batch by what a smaller one took a row, ns; batches are seldom more than four times as quick."""
    return min((found.ns_per_row_min * batch / 4 for found in known.values()), default=0.0)


def _measure_batch(runs: Mapping[str, Run], load: Load, batch: int, rounds: int, most: int) -> dict[str, Measurement]:
    parts = load.parts(batch)
    loops = {}
    for key, run in runs.items():
        run(parts[0])
        once = _timed(run, parts, 1)
        if once <= _SLOWEST_NS:
            loops[key] = max(1, int(_LOOP_NS / max(once, 1)))
    times: dict[str, list[float]] = {key: [] for key in loops}
    begun = time.process_time_ns()
    for number in range(most):
        if number >= rounds and (_sure(times) or time.process_time_ns() - begun > _ROUNDS_NS):
            break
        for key, count in loops.items():
            times[key].append(_timed(runs[key], parts, count) / count / batch)
    return {
        key: Measurement(
            batch=batch,
            threads=load.threads,
            ns_per_row_min=round(min(found), 1),
            ns_per_row_median=round(float(np.median(found)), 1),
            repeats=len(found),
        )
        for key, found in times.items()
    }


def _sure(times: Mapping[str, Sequence[float]]) -> bool:
    """Whether every median is known well enough: by the order statistics that hold it in 19 of 20 cases."""
    return all(_half_width(found) <= _SURE * float(np.median(found)) for found in times.values())


def _half_width(times: Sequence[float]) -> float:
    ordered = sorted(times)
    middle, reach = len(ordered) / 2, 0.98 * math.sqrt(len(ordered))  # the binomial's normal approximation
    low, high = max(0, math.floor(middle - reach)), min(len(ordered) - 1, math.ceil(middle + reach))
    return (ordered[high] - ordered[low]) / 2


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


def _from(array: Array, first: int, rows: int) -> Array:
    return np.ascontiguousarray(array[np.arange(first, first + rows) % len(array)])
