"""A race: every contender in turn, round after round, so that a busy moment of the machine hits all of them alike.

A contender is a process of its own (`children.py`); here it is two functions that run calls and say how long they took.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from benchmarks.networks.children import Failed
from benchmarks.shared.rounds import MIN_ROUNDS, Runner, rounds

_CHUNK = 25  # single calls at a time
_CALLS = 500


@dataclass(frozen=True)
class Contender:
    """`loop(n)`: CPU time of n calls together, ns, of all threads. `calls(n)`: wall time of each of n calls, ns."""

    loop: Callable[[int], int]
    calls: Callable[[int], list[int]]


@dataclass(frozen=True)
class Timing:
    """ms a call: CPU time over `rounds` timed loops, and wall time over `calls` single calls."""

    cpu_min: float
    cpu_p50: float
    rounds: int
    wall_p50: float
    wall_p99: float
    calls: int


@dataclass
class _Runner(Runner):
    most_calls: ClassVar[int] = 10_000
    shorter: ClassVar[int] = 4
    contender: Contender
    single: list[int] = field(default_factory=list)

    def loop(self, count: int) -> int:
        """CPU time of calls in the contender's process, ns."""
        return self.contender.loop(count)

    def chunk(self) -> None:
        """A few single calls, the first of which only fills the caches."""
        count = max(1, min(_CHUNK, self.calls))
        found = self.contender.calls(count + (count > 1))
        self.spent += sum(found)
        self.single += found[1:] if count > 1 else found

    def timing(self) -> Timing:
        """What was found."""
        wall = np.percentile(self.single, (50, 99)) / 1e6
        return Timing(
            cpu_min=min(self.times) / 1e6,
            cpu_p50=float(np.median(self.times)) / 1e6,
            rounds=len(self.times),
            wall_p50=float(wall[0]),
            wall_p99=float(wall[1]),
            calls=len(self.single),
        )


def race(contenders: Mapping[str, Contender], *, limit_s: float) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time the contenders until every minimum is stable, or `limit_s` is over; then single calls of each.

    A slow contender that has had its share of the time sits out the rounds after the third, and the others go on. Comes
    back with the timings, and with the reasons of those that failed on the way.
    """
    runners = {name: _Runner(contender) for name, contender in contenders.items()}
    share = int(limit_s * 1e9 / max(len(runners), 1))
    lost: dict[str, str] = {}

    def each(names: list[str], work: Callable[[_Runner], None]) -> None:
        for name in names:
            try:
                work(runners[name])
            except Failed as e:
                lost[name] = str(e)
                del runners[name]

    each(list(runners), _Runner.warm_up)
    for running in rounds(runners, share):
        each(running, _Runner.round)
    _single_calls(runners, each, share)
    return {name: runner.timing() for name, runner in runners.items()}, lost


def _single_calls(
    runners: dict[str, _Runner], each: Callable[[list[str], Callable[[_Runner], None]], None], share: int
) -> None:
    """Chunks in turn, until each has its number of calls, or has had half its share again; three at least."""
    begun = {name: runner.spent for name, runner in runners.items()}
    for number in range(_CALLS):
        running = [
            name
            for name, one in runners.items()
            if len(one.single) < _CALLS and (number < MIN_ROUNDS or one.spent - begun[name] < share // 2)
        ]
        if not running:
            return
        each(running, _Runner.chunk)
