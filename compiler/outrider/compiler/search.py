"""The search: every backend's candidates are built, verified and measured; goals filter, speed decides.

Where this machine can run the target's artifacts, choice is by measurement. Elsewhere it is by the written rule of
the backend (its first candidate), and parity is checked on a build of the same sources for this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from outrider.compiler.backends import BACKENDS, Backend, Built, Candidate, backend
from outrider.compiler.goals import Facts, Goal, check_goal
from outrider.compiler.measure import BATCHES, Timing, measure
from outrider.compiler.model import Array, Model, OnnxGraph
from outrider.compiler.samples import Samples
from outrider.compiler.verify import Truth, check_parity, labels_of
from outrider.runtime.bundle import CandidateRecord, GoalRecord, Manifest, Parity
from outrider.runtime.engines import open_engine
from outrider.runtime.engines.base import Engine
from outrider.runtime.errors import BadInputError, GoalUnmetError, UnsupportedError, UsageError
from outrider.runtime.target import Requirements, Target, refuse

Progress = Callable[[str], None]

_MARGIN = 0.95  # a candidate must be this much faster than the rule's, so that noise does not choose


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


@dataclass(frozen=True)
class Offer:
    """A candidate with the backend that builds it."""

    backend: Backend
    candidate: Candidate


@dataclass(frozen=True)
class Trial:
    """A candidate that was built: its artifact, its parity and, where it runs here, its times."""

    built: Built
    parity: Parity
    timing: Timing | None
    goals: tuple[GoalRecord, ...]

    @property
    def id(self) -> str:
        """The candidate's id."""
        return self.built.candidate.id


@dataclass(frozen=True)
class Outcome:
    """What a search found: the artifact to ship, a record of every candidate, and the goals."""

    chosen: Built
    records: tuple[CandidateRecord, ...]
    goals: tuple[GoalRecord, ...]


def search(task: Task) -> Outcome:
    """Find the artifact to ship.

    Raises UnsupportedError where no backend takes the model, ParityError where an artifact disagrees with the
    source, GoalUnmetError where no candidate meets the goals, ToolchainError.
    """
    _check_goals(task)
    offers, refused = _offers(task)
    tried = offers if task.runs_here else offers[:1]
    trials = _try_all(task, tried)
    fit = [trial for trial in trials if all(record.met for record in trial.goals)]
    if not fit:
        raise _unmet(task, trials)
    chosen = _fastest(fit)
    records = [_record(task, trial, chosen) for trial in trials]
    records += [_left_out(task, offer.candidate, chosen) for offer in offers[len(tried) :]]
    return Outcome(chosen.built, (*records, *refused), chosen.goals)


def replay(task: Task, earlier: Manifest) -> Outcome:
    """Build again what an earlier search chose, and take over what it measured: the same bundle, byte for byte.

    Raises BadInputError where the earlier bundle is of another model, target or choice of candidates.
    """
    if (earlier.source.sha256, earlier.target) != (task.model.sha256, task.target.name):
        raise BadInputError("the bundle to replay is of another model or target")
    if [goal.text for goal in earlier.goals] != [goal.text for goal in task.goals]:
        raise BadInputError("the bundle to replay was compiled for other goals")
    best = min((record for record in earlier.candidates if record.rank is not None), key=lambda r: r.rank or 0)
    offer = next((offer for offer in _offers(task)[0] if offer.candidate.id == best.id), None)
    if offer is None:
        raise BadInputError(f"this release does not know the candidate {best.id!r} of the bundle to replay")
    with ExitStack() as stack:
        built, _, _ = _build(task, offer, stack)
    return Outcome(built, earlier.candidates, earlier.goals)


def _offers(task: Task) -> tuple[list[Offer], list[CandidateRecord]]:
    offers: list[Offer] = []
    refused: list[CandidateRecord] = []
    for name in BACKENDS:
        maker = backend(name)
        reason = maker.refuses(task.model, task.target)
        if reason is None:
            offers += [Offer(maker, candidate) for candidate in maker.candidates(task.model, task.target)]
        else:
            refused.append(_refused(name, reason))
    if not offers:
        reasons = "; ".join(f"{record.backend}: {record.reason}" for record in refused)
        raise UnsupportedError(f"no backend compiles this model for {task.target.name}", hint=reasons)
    return offers, refused


def _try_all(task: Task, offers: Sequence[Offer]) -> list[Trial]:
    """Build and verify each offer, then measure them against each other."""
    with ExitStack() as stack:
        made = [_build(task, offer, stack) for offer in offers]
        timings: dict[str, Timing] = {}
        if task.runs_here:
            task.progress("measuring")
            engines = {built.candidate.id: engine for built, _, engine in made}
            payload = task.model.payload
            fixed = payload.batch if isinstance(payload, OnnxGraph) else None
            runs = {key: engine.run for key, engine in engines.items()}
            timings = measure(runs, task.truth.inputs, batches=(fixed,) if fixed else BATCHES)
        facts = {built.candidate.id: _facts(task, built, engine, timings) for built, _, engine in made}
    return [
        Trial(
            built=built,
            parity=parity,
            timing=timings.get(built.candidate.id),
            goals=tuple(check_goal(goal, facts[built.candidate.id]) for goal in task.goals),
        )
        for built, parity, _ in made
    ]


def _build(task: Task, offer: Offer, stack: ExitStack) -> tuple[Built, Parity, Engine]:
    """Build, open and verify. The engine runs the artifact itself, or its twin for this machine."""
    task.progress(f"building {offer.candidate.id}")
    built = offer.backend.build(task.model, offer.candidate, task.target)
    twin = built if task.runs_here else offer.backend.build(task.model, offer.candidate, task.host)
    engine = stack.enter_context(closing(open_engine(twin.entry, twin.data, task.model.signature)))
    task.progress(f"verifying {offer.candidate.id}")
    return built, check_parity(task.model, engine, task.truth, task.samples, candidate=offer.candidate.id), engine


def _facts(task: Task, built: Built, engine: Engine, timings: dict[str, Timing]) -> Facts:
    timing = timings.get(built.candidate.id)
    accuracy = base = None
    if any(goal.metric == "accuracy" for goal in task.goals):
        base = _accuracy(task, task.truth.outputs)
        accuracy = _accuracy(task, engine.run(task.truth.inputs))
    return Facts(
        p50=timing.p50_ms if timing else None,
        p99=timing.p99_ms if timing else None,
        size=len(built.data),
        accuracy=accuracy,
        base_accuracy=base,
    )


def _accuracy(task: Task, outputs: Mapping[str, Array]) -> float:
    predicted, labels = labels_of(outputs, task.model.signature), task.truth.labels
    assert predicted is not None
    assert labels is not None
    return float(np.mean(predicted == labels))


def _check_goals(task: Task) -> None:
    """Refuse goals that nothing could be measured against."""
    for goal in task.goals:
        if goal.metric == "accuracy":
            if task.truth.labels is None:
                raise UsageError(
                    f"the goal {goal.text!r} needs real rows with their labels",
                    hint="give calibration with an entry, or column, named label",
                )
            if labels_of(task.truth.outputs, task.model.signature) is None:
                raise UsageError(f"the goal {goal.text!r} needs a classifier with known class labels")
        elif goal.metric != "size" and not task.runs_here:
            raise UsageError(
                f"the goal {goal.text!r} cannot be measured for {task.target.name} on this machine",
                hint="compile on a machine of the target, or leave it to the device's probe",
            )


def _unmet(task: Task, trials: Sequence[Trial]) -> GoalUnmetError:
    closest = min(trials, key=lambda trial: sum(not record.met for record in trial.goals))
    missed = [record for record in closest.goals if not record.met]
    found = ", ".join(
        f"{record.text} (measured {record.measured:.4g} {record.unit}".rstrip() + ")" for record in missed
    )
    return GoalUnmetError(
        f"no candidate meets the goals for {task.target.name}; the closest, {closest.id}, misses {found}"
    )


def _fastest(trials: Sequence[Trial]) -> Trial:
    """By time; the first, which the rule prefers, unless another is clearly faster."""
    best = trials[0]
    for trial in trials[1:]:
        if _relative_time(trial, best) < (_MARGIN if best is trials[0] else 1.0):
            best = trial
    return best


def _relative_time(trial: Trial, other: Trial) -> float:
    """Geometric mean of the ratios of median times, over the batch sizes that both were measured at."""
    if trial.timing is None or other.timing is None:
        return 1.0
    theirs = {found.batch: found.ns_per_row_median for found in other.timing.measured}
    ratios = [
        found.ns_per_row_median / theirs[found.batch] for found in trial.timing.measured if theirs.get(found.batch)
    ]
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else 1.0


def _record(task: Task, trial: Trial, chosen: Trial) -> CandidateRecord:
    candidate = trial.built.candidate
    if trial is not chosen:
        missed = [record.text for record in trial.goals if not record.met]
        reason = f"misses {', '.join(missed)}" if missed else _slower(trial, chosen)
    elif task.runs_here:
        reason = "the fastest here of those that meet the goals" if task.goals else "the fastest here"
    else:
        reason = f"the rule for {task.target.arch}; verified on the same sources built for this machine, not measured"
    return CandidateRecord(
        id=candidate.id,
        backend=candidate.backend,
        precision=candidate.precision,
        options=candidate.options,
        outcome="chosen" if trial is chosen else "rejected",
        reason=reason,
        rank=1 if trial is chosen else None,
        size=len(trial.built.data),
        measured=trial.timing.measured if trial.timing else (),
        parity=trial.parity,
    )


def _slower(trial: Trial, chosen: Trial) -> str:
    ratio = _relative_time(trial, chosen)
    if ratio < 1.0:
        return f"takes {ratio:.2f} times the time of {chosen.id}, too little less to leave the rule"
    return f"takes {ratio:.2f} times the time of {chosen.id}"


def _left_out(task: Task, candidate: Candidate, chosen: Trial) -> CandidateRecord:
    return CandidateRecord(
        id=candidate.id,
        backend=candidate.backend,
        precision=candidate.precision,
        options=candidate.options,
        outcome="rejected",
        reason=f"not built: the rule for {task.target.arch} prefers {chosen.id}, and it cannot be measured here",
    )


def _refused(name: str, reason: str) -> CandidateRecord:
    return CandidateRecord(
        id=name, backend=name, precision="float32", options={}, outcome="not eligible", reason=reason
    )
