"""What a search works on, and what becomes of a candidate."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from outrider.compiler.backends import REDUCED, Built, Candidate, Order
from outrider.compiler.goals import Goal
from outrider.compiler.measure import BATCHES, Load, Timing
from outrider.compiler.metrics import Evaluate, Quality, measure_quality
from outrider.compiler.model import Array, Model
from outrider.compiler.samples import Samples
from outrider.compiler.trees.forest import Forest
from outrider.compiler.verify import Truth, spread
from outrider.runtime.bundle import CandidateRecord, GoalRecord, Parity
from outrider.runtime.calls import Arrays, one_call, rows_of_call, run_calls
from outrider.runtime.engines.base import Engine
from outrider.runtime.target import Requirements, Target, refuse

Progress = Callable[[str], None]
Run = Callable[[dict[str, Array]], Arrays]

_CALIBRATION_CALLS = 128  # that quantisation fixes its ranges on
_CALIBRATION_BYTES = 64 << 20  # the same, at most


@dataclass(frozen=True)
class Limits:
    """What a search may try: backends by name and precisions, None for all that the goals allow; for how long.

    `budget_s`: seconds after which no further candidate is built once there is one that could be shipped.
    `threads`: that a run may use. `tune_s`: seconds for tuning, beyond the budget. `settle`: Ctrl-C ends
    the search with the best so far, instead of raising KeyboardInterrupt.
    """

    backends: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    budget_s: float = 60.0
    threads: int = 1
    tune_s: float = 0.0
    settle: bool = False


@dataclass(frozen=True)
class Task:
    """What a search works on.

    `truth`: rows with the source library's outputs; `host`: this machine; `tuning`: records of earlier tuning.
    """

    model: Model
    target: Target
    host: Target
    samples: Samples
    truth: Truth
    goals: tuple[Goal, ...] = ()
    progress: Progress = lambda _: None
    evaluate: Evaluate | None = None
    limits: Limits = Limits()
    tuning: Mapping[str, bytes] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    @cached_property
    def order(self) -> Order:
        """What backends are asked for. Without a goal on quality, nothing is tried that would lose some."""
        wanted = self.limits.precisions
        if wanted is None:
            wanted = ("fp32", *(REDUCED if any(goal.on_quality for goal in self.goals) else ()))
        signature, inputs = self.model.signature, self.samples.inputs
        each = sum(array[:1].nbytes for array in inputs.values())
        picked = spread(self.samples.rows, max(1, min(_CALIBRATION_CALLS, _CALIBRATION_BYTES // max(each, 1))))
        calls = tuple(one_call(inputs, int(number), batched=signature.batched) for number in picked)
        return Order(
            model=self.model,
            target=self.target,
            calibration=calls,
            real=self.samples.real,
            precisions=frozenset(wanted),
            threads=self.limits.threads,
            on_host=self.measured,
            backends=self.limits.backends,
            tuning=dict(self.tuning),
            tune_s=self.limits.tune_s,
        )

    @cached_property
    def base(self) -> dict[str, float]:
        """The source model's quality, by metric that a goal names."""
        metrics = frozenset(goal.metric for goal in self.goals if goal.on_quality)
        return measure_quality(metrics, self._source, self.truth, self.model.signature, self.evaluate)

    def quality(self, run: Run) -> Quality:
        """A candidate's quality, by metric that a goal names."""
        metrics = frozenset(goal.metric for goal in self.goals if goal.on_quality)
        batched = self.model.signature.batched

        def predict(inputs: Arrays) -> Arrays:
            return run_calls(run, inputs, batched=batched)

        return Quality(measure_quality(metrics, predict, self.truth, self.model.signature, self.evaluate), self.base)

    def _source(self, inputs: Arrays) -> Arrays:
        if inputs is self.truth.inputs:
            return self.truth.outputs
        return run_calls(self.model.reference, inputs, batched=self.model.signature.batched)

    @property
    def seconds_left(self) -> float:
        """Of the budget; below 0 where it is used up."""
        return self.limits.budget_s + self.limits.tune_s - (time.monotonic() - self.begun)

    @property
    def runs_here(self) -> bool:
        """Whether this machine has all that a machine of the target has, and so can run its artifacts."""
        return refuse(Requirements(arch=self.target.arch, features=self.target.features), self.host) is None

    @property
    def load(self) -> Load:
        """What calls are measured with."""
        signature = self.model.signature
        sizes = BATCHES if isinstance(self.model.payload, Forest) else (1,)  # networks are asked row by row
        return Load(self.truth.inputs, signature.batched, rows_of_call(signature) or 1, sizes, self.limits.threads)

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
    quality: Quality = field(default_factory=Quality)

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
    def missed(self) -> tuple[GoalRecord, ...]:
        """The goals that it does not meet."""
        return tuple(record for record in self.goals if record.met is False)

    @property
    def id(self) -> str:
        """The candidate's id."""
        return self.built.candidate.id


@dataclass(frozen=True)
class Outcome:
    """What a search found: the artifacts to ship, by rank, a record of every candidate, and the goals.

    Where no candidate meets the goals, they are of the one that comes closest. `interrupted`: by Ctrl-C, so that not
    all candidates were tried. `momentary`: some failed for want of time or memory, which another moment may have.
    """

    shipped: tuple[Built, ...]
    records: tuple[CandidateRecord, ...]
    goals: tuple[GoalRecord, ...]
    interrupted: bool = False
    momentary: bool = False

    @property
    def missed(self) -> tuple[GoalRecord, ...]:
        """The goals that what was found does not meet."""
        return tuple(goal for goal in self.goals if goal.met is False)
