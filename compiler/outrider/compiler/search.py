"""The search: every backend's candidates are built and verified; goals filter, speed or a rule decides.

For this machine, `host`, choice is by measurement and one artifact is shipped. Candidates come in rounds: from the
times of the first ones a backend says what is worth building next, and what can be shipped is then measured at
length, interleaved. For any other target, the written rule of the backend decides, and one artifact is shipped for
each level of hardware that machines of the target may have, ranked; a device takes the first that it can run.

Nothing is shipped unverified: an artifact for another architecture runs under QEMU, and where there is none, a build of
the same sources for this machine is checked in its place. What nothing on this machine can run is left out. A
WebAssembly artifact runs wherever its engine does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from outrider.compiler.backends import BACKENDS, Backend, Built, Candidate, Times, backend
from outrider.compiler.goals import Facts, Goal, check_goal
from outrider.compiler.measure import BATCHES, Run, Timing, compare, measure
from outrider.compiler.model import Array, Model, OnnxGraph
from outrider.compiler.samples import Samples
from outrider.compiler.verify import Truth, check_parity, labels_of
from outrider.runtime.admission import admissible, need_of
from outrider.runtime.bundle import CandidateRecord, GoalRecord, Manifest, Measurement, Parity
from outrider.runtime.engines import available, open_engine
from outrider.runtime.engines.base import Engine
from outrider.runtime.errors import BadInputError, GoalUnmetError, ToolchainError, UnsupportedError, UsageError
from outrider.runtime.target import Refusal, Requirements, Target, refuse

Progress = Callable[[str], None]

_ROUNDS = 5  # of the brief measurements between which candidates are built
_BETWEEN = (8, 16, 32, 64)  # batch sizes at which the kernels for rows and for batches meet
_SIZES = {"row": (1, *_BETWEEN), "batch": (*_BETWEEN, 1024), None: (1, *_BETWEEN, 1024)}
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

    @property
    def measured(self) -> bool:
        """Whether the target is this machine, so that measurements here decide."""
        return self.target == self.host


@dataclass(frozen=True)
class Offer:
    """A candidate with the backend that builds it."""

    backend: Backend
    candidate: Candidate


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


@dataclass(frozen=True)
class Outcome:
    """What a search found: the artifacts to ship, by rank, a record of every candidate, and the goals."""

    shipped: tuple[Built, ...]
    records: tuple[CandidateRecord, ...]
    goals: tuple[GoalRecord, ...]


def search(task: Task) -> Outcome:
    """Find the artifacts to ship.

    Raises UnsupportedError where no backend takes the model, ParityError where an artifact disagrees with the
    source, GoalUnmetError where no candidate meets the goals, ToolchainError.
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
    records = sorted((_record(task, trial, shipped) for trial in trials), key=_by_rank)
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
            made = _make(task, Offer(maker, candidate), stack)
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
            refused.append(_refused(name, reason))
    if not takers:
        reasons = "; ".join(f"{record.backend}: {record.reason}" for record in refused)
        raise UnsupportedError(f"no backend compiles this model for {task.target.name}", hint=reasons)
    return takers, refused


def _explore(task: Task, backends: Mapping[str, Backend], stack: ExitStack) -> tuple[list[Made], list[CandidateRecord]]:
    """Let every backend explore. Comes back with what can be shipped, and records of what cannot: mere parts."""
    found: list[Made] = []
    parts: list[CandidateRecord] = []
    for maker in backends.values():
        bench = _Bench(task, maker, stack)
        maker.explore(task.model, task.target, bench)
        found += [made for made in bench.made.values() if made.candidate.part is None]
        measured = bench.measured
        parts += [_part_record(made, measured.get(key, {})) for key, made in bench.made.items() if made.candidate.part]
    return found, parts


class _Bench:
    """The workbench of one backend: what it built and measured, by candidate id."""

    def __init__(self, task: Task, maker: Backend, stack: ExitStack) -> None:
        self._task, self._maker, self._stack = task, maker, stack
        self.made: dict[str, Made] = {}
        self.measured: dict[str, dict[int, Measurement]] = {}

    def build(self, candidates: Sequence[Candidate]) -> float:
        """Those that were not built yet."""
        seconds = 0.0
        for candidate in (one for one in candidates if one.id not in self.made):
            made = _make(self._task, Offer(self._maker, candidate), self._stack)
            if isinstance(made, Made):
                self.made[candidate.id] = made
                seconds = max(seconds, made.seconds)
        return seconds

    def times(self) -> Times:
        """Each at the batch sizes of its role."""
        self._task.progress("measuring")
        runs = {key: _shortest_run(self._task, made.engine) for key, made in self.made.items()}
        sizes = {key: _SIZES[made.candidate.part] for key, made in self.made.items()}
        self.measured = compare(runs, self._task.truth.inputs, sizes, rounds=_ROUNDS)
        measured = self.measured.items()
        return {key: {batch: times.ns_per_row_min for batch, times in found.items()} for key, found in measured}


def _by_rule(task: Task, backends: Mapping[str, Backend], stack: ExitStack) -> tuple[list[Made], list[CandidateRecord]]:
    """Build what the rule of the first backend ships. Comes back with records of what cannot be verified here."""
    maker = next(iter(backends.values()))
    made, left_out = [], []
    for candidate in maker.rule(task.model, task.target):
        one = _make(task, Offer(maker, candidate), stack)
        if isinstance(one, Made):
            made.append(one)
        else:
            left_out.append(_left_out(candidate, one))
    return made, left_out


def _make(task: Task, offer: Offer, stack: ExitStack) -> Made | Refusal:
    """Build, open and verify; why not, where neither the artifact nor a twin of it runs on this machine.

    An artifact for another architecture runs under emulation; where the emulator is missing or itself fails, its twin
    for this machine is verified.
    """
    from outrider.targets.emulate import EmulatedEngine

    task.progress(f"building {offer.candidate.id}")
    begun = time.monotonic()
    built, signature = offer.backend.build(task.model, offer.candidate, task.target), task.model.signature
    seconds = time.monotonic() - begun
    foreign = task.target.arch != task.host.arch

    def verified(engine: Engine, how: str, *, runs_here: bool = False) -> Made:
        stack.enter_context(closing(engine))
        task.progress(f"verifying {offer.candidate.id}")
        parity = check_parity(task.model, engine, task.truth, task.samples, candidate=offer.candidate.id)
        return Made(built, parity, engine, runs_here, how, seconds)

    # Where the engine of this machine's own artifacts is missing, opening one says so.
    refusal = admissible(need_of(built.entry), task.host, engines=lambda kind: not foreign or available(kind))
    if refusal is None:
        engine = open_engine(built.entry, built.data, signature)
        return verified(engine, f"here, by {built.entry.package}", runs_here=True)
    if not foreign:
        return refusal
    if built.entry.format == "native":
        with suppress(ToolchainError):
            emulated = EmulatedEngine(built.entry, built.data, task.target, signature)
            return verified(emulated, f"under {emulated.binding}")
    twin = offer.backend.twin(task.model, offer.candidate, task.host)
    if twin is None or refuse(twin.entry.needs, task.host) is not None:
        return refusal
    return verified(open_engine(twin.entry, twin.data, signature), "on the same sources built for this machine")


def _trials(task: Task, made: Sequence[Made]) -> list[Trial]:
    """Measure what runs here against each other, and hold it against the goals."""
    timings: dict[str, Timing] = {}
    runs = {one.candidate.id: _shortest_run(task, one.engine) for one in made if one.runs_here and task.runs_here}
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


def _shortest_run(task: Task, engine: Engine) -> Run:
    """A run in the way that a session takes for the main output: for a model of one matrix, a function of its own."""
    signature = task.model.signature

    def refuse(rows: Any) -> Array:
        raise AssertionError(f"the artifact's own function does not take rows of {rows.dtype} and shape {rows.shape}")

    function = engine.matrix_function(signature.predict, refuse)
    name = signature.inputs[0].name
    return engine.run if function is None else lambda inputs: function(inputs[name])


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


def _record(task: Task, trial: Trial, shipped: Sequence[Trial]) -> CandidateRecord:
    rank = shipped.index(trial) + 1 if trial in shipped else None
    missed = [record.text for record in trial.goals if record.met is False]
    if rank is None:
        reason = f"misses {', '.join(missed)}" if missed else _slower(trial, shipped[0])
    elif task.measured:
        reason = "the fastest here of those that meet the goals" if task.goals else "the fastest here"
    else:
        reason = _by_the_rule(task, trial)
    return _candidate_record(
        trial.built.candidate,
        "rejected" if rank is None else "chosen" if rank == 1 else "shipped",
        reason,
        rank=rank,
        size=len(trial.built.data),
        measured=trial.timing.measured if trial.timing else (),
        parity=trial.parity,
    )


def _by_rank(record: CandidateRecord) -> float:
    """What is shipped comes first, in order."""
    return math.inf if record.rank is None else record.rank


def _by_the_rule(task: Task, trial: Trial) -> str:
    beyond = [feature for feature in trial.built.entry.needs.features if feature not in task.target.features]
    whose = f"the rule for {task.target.arch}" + (f" with {' '.join(beyond)}" if beyond else "")
    if trial.timing is not None:
        return whose
    return f"{whose}; verified {trial.how}, not measured"


def _slower(trial: Trial, chosen: Trial) -> str:
    ratio = _relative_time(trial, chosen)
    if ratio < 1.0:
        return f"takes {ratio:.2f} times the time of {chosen.id}: not clearly faster than the rule prefers"
    return f"takes {ratio:.2f} times the time of {chosen.id}"


def _part_record(made: Made, measured: Mapping[int, Measurement]) -> CandidateRecord:
    role = {"row": "single rows", "batch": "batches"}[made.candidate.part or "row"]
    reason = f"for {role} only: measured for the choice of the two that are shipped together"
    return _candidate_record(
        made.candidate,
        "rejected",
        reason,
        size=len(made.built.data),
        measured=tuple(measured.values()),
        parity=made.parity,
    )


def _left_out(candidate: Candidate, refusal: Refusal) -> CandidateRecord:
    return _candidate_record(
        candidate, "rejected", f"not shipped: this machine cannot run it, so it cannot be verified ({refusal})"
    )


def _refused(name: str, reason: str) -> CandidateRecord:
    return _candidate_record(Candidate(name), "not eligible", reason)


def _candidate_record(
    candidate: Candidate,
    outcome: Literal["chosen", "shipped", "rejected", "not eligible"],
    reason: str,
    *,
    rank: int | None = None,
    size: int | None = None,
    measured: tuple[Measurement, ...] = (),
    parity: Parity | None = None,
) -> CandidateRecord:
    return CandidateRecord(
        id=candidate.id,
        backend=candidate.backend,
        precision=candidate.precision,
        options=candidate.options,
        outcome=outcome,
        reason=reason,
        rank=rank,
        size=size,
        measured=measured,
        parity=parity,
    )
