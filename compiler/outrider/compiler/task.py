"""What a search works on, and what becomes of a candidate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from outrider.compiler.backends import Built, Candidate
from outrider.compiler.goals import Goal
from outrider.compiler.measure import Timing
from outrider.compiler.model import Model
from outrider.compiler.samples import Samples
from outrider.compiler.verify import Truth
from outrider.runtime.bundle import GoalRecord, Parity
from outrider.runtime.engines.base import Engine
from outrider.runtime.target import Requirements, Target, refuse

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """What a search works on. `truth`: rows with the source library's outputs; `host`: this machine."""

    model: Model
    target: Target
    host: Target
    samples: Samples
    truth: Truth
    goals: tuple[Goal, ...] = ()
    progress: Progress = lambda _: None

    @property
    def runs_here(self) -> bool:
        """Whether this machine has all that a machine of the target has, and so can run its artifacts."""
        return refuse(Requirements(arch=self.target.arch, features=self.target.features), self.host) is None

    @property
    def measured(self) -> bool:
        """Whether the target is this machine, so that measurements here decide."""
        return self.target == self.host


@dataclass(frozen=True)
class Made:
    """A candidate that was built, in `seconds`, and verified: by `engine`, which runs it or its twin, told in `how`."""

    built: Built
    parity: Parity
    engine: Engine
    runs_here: bool
    how: str
    seconds: float

    @property
    def candidate(self) -> Candidate:
        """The candidate."""
        return self.built.candidate


@dataclass(frozen=True)
class Trial:
    """A candidate that could be shipped: its artifact, its parity and, where it runs here, its times."""

    built: Built
    parity: Parity
    how: str
    timing: Timing | None
    goals: tuple[GoalRecord, ...]

    @property
    def id(self) -> str:
        """The candidate's id."""
        return self.built.candidate.id
