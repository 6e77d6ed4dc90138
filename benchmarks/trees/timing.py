"""A race: every contender in turn, round after round, so that a busy moment of the machine hits all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from benchmarks.trees.data import Floats

MIN_ROUNDS, MAX_ROUNDS = 3, 200
_LEAP = 0.01  # a minimum that falls by less is stable
_CALM = 8  # rounds without a new minimum that end a race
_LOOP_NS = 20_000_000  # of CPU time, of one timed loop: long beside what it takes to fill the caches

Clock = Callable[[], int]


@dataclass(frozen=True)
class Timing:
    """CPU time of the whole process (all its threads), ns a row, over `rounds` timed loops."""

    ns_min: float
    ns_median: float
    rounds: int


@dataclass
class _Runner:
    """One contender in a race. It goes through the batches in turn, so that no branch predictor learns one by heart."""

    predict: Callable[[Any], Any]
    batches: Sequence[Floats]
    clock: Clock
    calls: int = 1
    position: int = 0
    spent: int = 0
    times: list[float] = field(default_factory=list)
    best_round: int = 0

    def warm_up(self) -> None:
        """Run once cold, once timed, to choose how many calls make a loop."""
        self.spent += self._loop()
        once = self._loop()
        self.spent += once
        self.calls = max(1, min(_LOOP_NS // max(once, 1), 100_000))

    def round(self) -> None:
        """One timed loop, after an untimed one that brings back into the caches what the others drove out.

        A single call that takes as long as a loop does so by itself.
        """
        if self.calls > 1:
            self.spent += self._loop()
        taken = self._loop()
        self.spent += taken
        value = taken / self.calls / len(self.batches[0])
        if not self.times or value < min(self.times) * (1 - _LEAP):
            self.best_round = len(self.times)
        self.times.append(value)

    def stable(self) -> bool:
        """Whether the minimum has stayed for a while."""
        return len(self.times) - self.best_round > _CALM

    def _loop(self) -> int:
        chosen = [self.batches[(self.position + i) % len(self.batches)] for i in range(self.calls)]
        self.position += self.calls
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
        _rounds(list(runners.values()), share)
    finally:
        gc.enable()
    return {
        name: Timing(min(runner.times), float(np.median(runner.times)), len(runner.times))
        for name, runner in runners.items()
    }


def _rounds(runners: list[_Runner], share: int) -> None:
    for number in range(MAX_ROUNDS):
        running = [runner for runner in runners if number < MIN_ROUNDS or runner.spent < share]
        if not running or (number >= MIN_ROUNDS and all(runner.stable() for runner in running)):
            return
        for runner in running:
            runner.round()
