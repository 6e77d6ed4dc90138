"""A race: every contender in turn, round after round, so that a busy moment of the machine hits all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from benchmarks.shared.rounds import Runner, rounds
from benchmarks.trees.data import Floats

Clock = Callable[[], int]


@dataclass(frozen=True)
class Timing:
    """CPU time of the whole process (all its threads), ns a row, over `rounds` timed loops."""

    ns_min: float
    ns_median: float
    rounds: int


@dataclass
class _Runner(Runner):
    """One contender in a race. It goes through the batches in turn, so that no branch predictor learns one by heart."""

    most_calls: ClassVar[int] = 100_000
    predict: Callable[[Any], Any]
    batches: Sequence[Floats]
    clock: Clock
    position: int = 0

    @property
    def rows(self) -> int:
        """How many rows a batch has."""
        return len(self.batches[0])

    def loop(self, count: int) -> int:
        """CPU time of calls on the next batches, ns."""
        chosen = [self.batches[(self.position + i) % len(self.batches)] for i in range(count)]
        self.position += count
        predict = self.predict
        start = self.clock()
        for rows in chosen:
            predict(rows)
        return self.clock() - start


def race(
    contenders: Mapping[str, Callable[[Any], Any]],
    rows: Floats,
    batch: int,
    *,
    limit_s: float,
    clock: Clock = time.process_time_ns,
) -> dict[str, Timing]:
    """Time the contenders on batches of different rows until every minimum is stable, or `limit_s` is over.

    A slow contender that has had its share of the time sits out the rounds after the third, and the others go on.
    """
    batches = [rows[start : start + batch] for start in range(0, min(len(rows) - batch, 1024 * batch) + 1, batch)]
    runners = {name: _Runner(predict, batches, clock) for name, predict in contenders.items()}
    share = int(limit_s * 1e9 / max(len(runners), 1))
    for runner in runners.values():
        runner.warm_up()
    gc.collect()
    gc.disable()
    try:
        for running in rounds(runners, share):
            for name in running:
                runners[name].round()
    finally:
        gc.enable()
    return {
        name: Timing(min(runner.times), float(np.median(runner.times)), len(runner.times))
        for name, runner in runners.items()
    }
