"""The rounds of a race: every contender in turn, so that a busy moment of the machine hits all of them alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

MIN_ROUNDS, MAX_ROUNDS = 3, 200
_LEAP = 0.01  # a minimum that falls by less is stable
_CALM = 8  # rounds without a new minimum that end a race
_LOOP_NS = 20_000_000  # of CPU time, of one timed loop: long beside what it takes to fill the caches


@dataclass
class Runner(ABC):
    """One contender in a race: the CPU time it has had, ns, and a time of each round, ns a row of a call.

    `most_calls` make a loop; an untimed loop is `shorter` times as short.
    """

    most_calls: ClassVar[int]
    shorter: ClassVar[int] = 1
    calls: int = field(default=1, init=False)
    spent: int = field(default=0, init=False)
    times: list[float] = field(default_factory=list, init=False)
    best_round: int = field(default=0, init=False)

    @property
    def rows(self) -> int:
        """How many rows a call has."""
        return 1

    @abstractmethod
    def loop(self, count: int) -> int:
        """CPU time of so many calls together, ns."""

    def warm_up(self) -> None:
        """Run once cold, once timed, to choose how many calls make a loop."""
        self.spent += self.loop(1)
        once = self.loop(1)
        self.spent += once
        self.calls = max(1, min(_LOOP_NS // max(once, 1), self.most_calls))

    def round(self) -> None:
        """One timed loop, after an untimed one that brings back into the caches what the others drove out.

        A single call that takes as long as a loop does so by itself.
        """
        if self.calls > 1:
            self.spent += self.loop(max(1, self.calls // self.shorter))
        taken = self.loop(self.calls)
        self.spent += taken
        value = taken / self.calls / self.rows
        if not self.times or value < min(self.times) * (1 - _LEAP):
            self.best_round = len(self.times)
        self.times.append(value)

    def stable(self) -> bool:
        """Whether the minimum has stayed for a while."""
        return len(self.times) - self.best_round > _CALM


def rounds(runners: Mapping[str, Runner], share: int) -> Iterator[list[str]]:
    """Who runs in each round, until every minimum is stable or all have had their share of CPU time, ns.

    A slow contender that has had its share sits out the rounds after the third, and the others go on.
    """
    for number in range(MAX_ROUNDS):
        running = [name for name, one in runners.items() if number < MIN_ROUNDS or one.spent < share]
        if not running or (number >= MIN_ROUNDS and all(runners[name].stable() for name in running)):
            return
        yield running
