"""The search: every backend's candidates are built and verified; goals filter, speed or a rule decides.

For this machine, `host`, choice is by measurement and one artifact is shipped. Candidates come in rounds: from the
times of the first ones a backend says what is worth building next, and what can be shipped is then measured at
length, interleaved. For any other target, the written rule of the backend decides, and one artifact is shipped for
each level of hardware that machines of the target may have, ranked; a device takes the first that it can run.

Nothing is shipped unverified (`making.py`). What nothing on this machine can run is left out; what is not close enough
to the source gives way to the candidate that does as the source does, step by step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from outrider.compiler.backends import BACKENDS, Backend, Built, backend
from outrider.compiler.goals import Facts, check_goal
from outrider.compiler.making import Bench, make, shortest_run
from outrider.compiler.measure import BATCHES, MARGIN, Timing, measure
from outrider.compiler.model import Array, OnnxGraph
from outrider.compiler.records import by_rank, left_record, part_record, refused_record, relative_time, trial_record
from outrider.compiler.task import Made, Task, Trial
from outrider.compiler.verify import labels_of
from outrider.runtime.bundle import CandidateRecord, GoalRecord, Manifest
from outrider.runtime.engines.base import Engine
from outrider.runtime.errors import BadInputError, GoalUnmetError, ParityError, UnsupportedError, UsageError
from outrider.runtime.target import Refusal


@dataclass(frozen=True)
class Outcome:
    """What a search found: the artifacts to ship, by rank, a record of every candidate, and the goals."""

    shipped: tuple[Built, ...]
    records: tuple[CandidateRecord, ...]
    goals: tuple[GoalRecord, ...]


def search(task: Task) -> Outcome:
    """Find the artifacts to ship.

    Raises UnsupportedError where no backend takes the model, ParityError where no artifact agrees with the source,
    GoalUnmetError where no candidate meets the goals, ToolchainError.
    """
    _check_goals(task)
    backends, refused = _backends(task)
    with ExitStack() as stack:
        if task.measured:
            made, left_out = _explore(task, backends, stack)
        else:
            made, left_out = _by_rule(task, backends, stack)
        trials = _trials(task, made)
    fit = [trial for trial in trials if all(record.met is not False for record in trial.goals)]
    if not fit:
        raise _unmet(task, trials)
    shipped = [_fastest(fit)] if task.measured else fit
    records = sorted((trial_record(task, trial, shipped) for trial in trials), key=by_rank)
    return Outcome(
        shipped=tuple(trial.built for trial in shipped),
        records=(*records, *left_out, *refused),
        goals=shipped[0].goals,
    )


def replay(task: Task, earlier: Manifest) -> Outcome:
    """Build again what an earlier search chose, and take over what it measured: the same bundle, byte for byte.

    Raises BadInputError where the earlier bundle is of another model, target or choice of candidates.
    """
    if (earlier.source.sha256, earlier.target) != (task.model.sha256, task.target.name):
        raise BadInputError("the bundle to replay is of another model or target")
    if [goal.text for goal in earlier.goals] != [goal.text for goal in task.goals]:
        raise BadInputError("the bundle to replay was compiled for other goals")
    ranked = sorted((record for record in earlier.candidates if record.rank is not None), key=lambda r: r.rank or 0)
    backends, _ = _backends(task)
    shipped = []
    with ExitStack() as stack:
        for record in ranked:
            maker = backends.get(record.backend)
            candidate = maker.recall(task.model, task.target, record.options) if maker else None
            if maker is None or candidate is None or candidate.id != record.id:
                raise BadInputError(f"this release does not know the candidate {record.id!r} of the bundle to replay")
            made = make(task, maker, candidate, stack)
            if isinstance(made, Refusal):
                raise BadInputError(f"this machine cannot verify the candidate {record.id!r}: {made}")
            shipped.append(made.built)
    return Outcome(tuple(shipped), earlier.candidates, earlier.goals)


def _backends(task: Task) -> tuple[dict[str, Backend], list[CandidateRecord]]:
    """The backends that take the model, by name, and records of those that do not."""
    takers: dict[str, Backend] = {}
    refused: list[CandidateRecord] = []
    for name in BACKENDS:
        maker = backend(name)
        reason = maker.refuses(task.model, task.target)
        if reason is None:
            takers[name] = maker
        else:
            refused.append(refused_record(name, reason))
    if not takers:
        reasons = "; ".join(f"{record.backend}: {record.reason}" for record in refused)
        raise UnsupportedError(f"no backend compiles this model for {task.target.name}", hint=reasons)
    return takers, refused


def _explore(task: Task, backends: Mapping[str, Backend], stack: ExitStack) -> tuple[list[Made], list[CandidateRecord]]:
    """Let every backend explore. Comes back with what can be shipped, and records of what cannot."""
    found: list[Made] = []
    others: list[CandidateRecord] = []
    for maker in backends.values():
        bench = Bench(task, maker, stack)
        maker.explore(task.model, task.target, bench)
        bench.check()
        found += [made for made in bench.made.values() if made.candidate.part is None]
        measured = bench.measured
        others += [part_record(made, measured.get(key, {})) for key, made in bench.made.items() if made.candidate.part]
        others += [left_record(*left) for left in bench.left.values()]
    return found, others


def _by_rule(task: Task, backends: Mapping[str, Backend], stack: ExitStack) -> tuple[list[Made], list[CandidateRecord]]:
    """Build what the rule of the first backend ships. Comes back with records of what is not shipped."""
    maker = next(iter(backends.values()))
    bench = Bench(task, maker, stack)
    bench.build(maker.rule(task.model, task.target))
    if any(isinstance(why, ParityError) for _, why in bench.left.values()):
        bench.build_faithful()
    bench.check()
    return list(bench.made.values()), [left_record(*left) for left in bench.left.values()]


def _trials(task: Task, made: Sequence[Made]) -> list[Trial]:
    """Measure what runs here against each other, and hold it against the goals."""
    timings: dict[str, Timing] = {}
    runs = {one.candidate.id: shortest_run(task, one.engine) for one in made if one.runs_here and task.runs_here}
    if runs:
        task.progress("measuring")
        payload = task.model.payload
        fixed = payload.batch if isinstance(payload, OnnxGraph) else None
        timings = measure(runs, task.truth.inputs, batches=(fixed,) if fixed else BATCHES)
    facts = {one.candidate.id: _facts(task, one.built, one.engine, timings) for one in made}
    return [
        Trial(
            built=one.built,
            parity=one.parity,
            how=one.how,
            timing=timings.get(one.candidate.id),
            goals=tuple(check_goal(goal, facts[one.candidate.id]) for goal in task.goals),
        )
        for one in made
    ]


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
    closest = min(trials, key=lambda trial: sum(record.met is False for record in trial.goals))
    missed = [record for record in closest.goals if record.met is False]
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
        if relative_time(trial, best) < (MARGIN if best is trials[0] else 1.0):
            best = trial
    return best
