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

from outrider.compiler.backends import BACKENDS, REDUCED, Backend, backend
from outrider.compiler.cache import Cache
from outrider.compiler.goals import Facts, check_goal, shortfall
from outrider.compiler.making import Bench, Left, OutOfTime, Workroom, make, shortest_run
from outrider.compiler.measure import Timing, measure
from outrider.compiler.metrics import check_metric
from outrider.compiler.ranking import ranked
from outrider.compiler.records import by_rank, left_record, part_record, refused_record, relative_time, trial_record
from outrider.compiler.resident import measure_rss
from outrider.compiler.task import Made, Outcome, Task, Trial
from outrider.runtime.bundle import CandidateRecord, Manifest
from outrider.runtime.choice import MARGIN
from outrider.runtime.errors import (
    BadDataError,
    BadInputError,
    EngineFault,
    OutriderError,
    ParityError,
    ToolchainError,
    UnsupportedError,
    UsageError,
)
from outrider.runtime.target import Refusal


def search(task: Task, cache: Cache) -> Outcome:
    """Find the artifacts to ship. Where the task settles for it, Ctrl-C ends this with the best so far, if there is
    any; in the middle of measuring, with what the rule prefers.

    Raises UnsupportedError where no backend takes the model, ParityError where no artifact agrees with the source,
    ToolchainError, UsageError.
    """
    _check_goals(task)
    known = cache.search(task)
    if known is not None:
        return known
    backends, refused = _backends(task)
    with ExitStack() as stack:
        room = Workroom(task, cache, stack)
        interrupted = _build_all(room, backends)
        made = [one for bench in room.benches for one in bench.made.values() if one.candidate.part is None]
        if not made:
            raise _nothing(task, room)
        timings = _timings(task, made)
        interrupted = interrupted or timings is None
        trials, faults = _trials(task, made, timings or {})
        if not trials:
            raise _nothing(task, room, faults)
    fit = [trial for trial in trials if not trial.missed]
    shipped = _pick(task, fit) if fit else [_closest(trials)]
    records = sorted((trial_record(task, trial, shipped) for trial in trials), key=by_rank)
    outcome = Outcome(
        shipped=tuple(trial.built for trial in shipped),
        records=(*records, *_left_out(room), *map(left_record, faults), *refused),
        goals=shipped[0].goals,
        interrupted=interrupted,
        momentary=any(isinstance(one.why, OutOfTime | ToolchainError) for one in _left(room)),
    )
    cache.keep_search(task, outcome)
    return outcome


def replay(task: Task, cache: Cache, earlier: Manifest) -> Outcome:
    """Build again what an earlier search chose, and take over what it measured: the same bundle, byte for byte.

    Raises BadInputError where the earlier bundle is of another model, target or choice of candidates.
    """
    if (earlier.source.sha256, earlier.target) != (task.model.sha256, task.target.name):
        raise BadInputError("the bundle to replay is of another model or target")
    if [goal.text for goal in earlier.goals] != [goal.text for goal in task.goals]:
        raise BadInputError("the bundle to replay was compiled for other goals")
    backends, _ = _backends(task)
    shipped = []
    with ExitStack() as stack:
        room = Workroom(task, cache, stack)
        for record in earlier.ranked_candidates():
            maker = backends.get(record.backend)
            candidate = maker.recall(task.order, record.precision, record.options) if maker else None
            if maker is None or candidate is None or candidate.id != record.id:
                raise BadInputError(f"this release does not know the candidate {record.id!r} of the bundle to replay")
            made = make(room, record.backend, maker, candidate)
            if isinstance(made, Refusal):
                raise BadInputError(f"this machine cannot verify the candidate {record.id!r}: {made}")
            shipped.append(made.built)
    return Outcome(tuple(shipped), earlier.candidates, earlier.goals)


def _backends(task: Task) -> tuple[dict[str, Backend], list[CandidateRecord]]:
    """The backends that take the model, by name, and records of those that do not, or not in some precision."""
    wanted = task.limits.backends
    unknown = sorted(set(wanted or ()) - set(BACKENDS))
    if unknown:
        raise UsageError(f"there is no backend {unknown[0]!r}", hint=f"there are {', '.join(BACKENDS)}")
    takers: dict[str, Backend] = {}
    refused: list[CandidateRecord] = []
    for name in BACKENDS:
        if wanted is not None and name not in wanted:
            continue
        maker = backend(name)
        reason = maker.refuses(task.order)
        allowed = [precision for precision in maker.precisions if task.order.allows(precision)]
        if reason is None and not allowed:
            reason = f"it compiles in {', '.join(maker.precisions)} only"
        if reason is None:
            takers[name] = maker
            refused += _not_allowed(task, name, maker)
        else:
            refused.append(refused_record(name, reason))
    if not takers:
        reasons = "; ".join(f"{record.backend}: {record.reason}" for record in refused)
        raise UnsupportedError(f"no backend compiles this model for {task.target.name}", hint=reasons)
    return takers, refused


def _not_allowed(task: Task, name: str, maker: Backend) -> list[CandidateRecord]:
    """Records of reduced precisions that nothing asks for."""
    if task.limits.precisions is not None:
        return []
    reason = "no goal says how much quality may be lost: state one, such as accuracy>=base-0.01, or name the precision"
    reduced = [one for one in maker.precisions if one in REDUCED and not task.order.allows(one)]
    return [refused_record(name, reason, precision) for precision in reduced]


def _build_all(room: Workroom, backends: Mapping[str, Backend]) -> bool:
    """Let every backend explore, or build what its rule says; whether Ctrl-C ended it, with something that ships."""
    try:
        for name, maker in backends.items():
            bench = Bench(room, name, maker)
            if room.task.measured:
                maker.explore(room.task.order, bench)
            else:
                bench.build(maker.rule(room.task.order))
            if not room.task.measured or not bench.ships():
                bench.mend()
    except KeyboardInterrupt:
        if not (room.task.limits.settle and any(bench.ships() for bench in room.benches)):
            raise
        room.task.progress("interrupted: measuring the best so far")
        return True
    return False


def _left_out(room: Workroom) -> list[CandidateRecord]:
    """Records of what cannot be shipped: mere parts, and what failed."""
    records: list[CandidateRecord] = []
    for bench in room.benches:
        parts = [(key, made) for key, made in bench.made.items() if made.candidate.part]
        records += [part_record(made, bench.measured.get(key, {})) for key, made in parts]
        records += [left_record(left) for left in bench.left.values()]
    return records


def _left(room: Workroom) -> list[Left]:
    return [one for bench in room.benches for one in bench.left.values()]


def _nothing(task: Task, room: Workroom, faults: Sequence[Left] = ()) -> OutriderError:
    """Why nothing is left: the one reason where all share it, else what each says."""
    left = [*faults, *_left(room)]
    errors = [one.why for one in left if isinstance(one.why, OutriderError)]
    if len(left) == len(errors) == 1:
        return errors[0]
    kinds = (ParityError, BadDataError, UnsupportedError)
    worst = next((e for kind in kinds for e in errors if isinstance(e, kind)), None)
    reasons = "; ".join(f"{one.candidate.id}: {one.why}" for one in left)
    if worst is not None:
        return worst
    if errors:
        return ToolchainError(f"no candidate could be built for {task.target.name}", hint=reasons)
    return UnsupportedError(f"nothing runs on {task.target.name}", hint=reasons)


def _timings(task: Task, made: Sequence[Made]) -> dict[str, Timing] | None:
    """What runs here, measured against each other; None where Ctrl-C ended it, and no goal is on time."""
    runs = {one.candidate.id: shortest_run(task, one.engine) for one in made if one.runs_here and task.runs_here}
    if not runs:
        return {}
    task.progress("measuring")
    try:
        return measure(runs, task.load)
    except KeyboardInterrupt:
        if not task.limits.settle or any(goal.metric in ("p50", "p99") for goal in task.goals):
            raise
        task.progress("interrupted: choosing by the rule")
        return None


def _trials(task: Task, made: Sequence[Made], timings: Mapping[str, Timing]) -> tuple[list[Trial], list[Left]]:
    """What was made against the goals; and what failed as it was measured."""
    trials: list[Trial] = []
    faults: list[Left] = []
    for one in made:
        timing = timings.get(one.candidate.id)
        try:
            facts = _facts(task, one, timing)
        except EngineFault as e:
            faults.append(Left(one.candidate, e))
            continue
        goals = tuple(check_goal(goal, facts) for goal in task.goals)
        trials.append(Trial(built=one.built, parity=one.parity, how=one.how, timing=timing, goals=goals))
    return trials, faults


def _facts(task: Task, made: Made, timing: Timing | None) -> Facts:
    built = made.built
    asked = made.runs_here and any(goal.metric == "rss" for goal in task.goals)
    return Facts(
        p50=timing.p50_ms if timing else None,
        p99=timing.p99_ms if timing else None,
        size=len(built.data),
        rss=measure_rss(built.entry, built.data, task.model.signature, task.load.parts(1)[0]) if asked else None,
        quality=made.quality,
    )


def _check_goals(task: Task) -> None:
    """Refuse goals that nothing could be measured against.

    Raises UsageError, BadInputError for a function of the caller's that fails on the source model.
    """
    for goal in task.goals:
        if goal.on_quality:
            check_metric(goal.metric, task.truth, task.model.signature, own=task.evaluate is not None)
        elif goal.metric != "size" and not task.runs_here:
            raise UsageError(
                f"the goal {goal.text!r} cannot be measured for {task.target.name} on this machine",
                hint="compile on a machine of the target, or leave it to the device's probe",
            )
    _ = task.base  # what the caller's function cannot do should be known before anything is built


def _pick(task: Task, fit: Sequence[Trial]) -> list[Trial]:
    """What to ship of those that meet the goals."""
    ordered = _by_rule(task, fit)
    if not task.measured:
        return ordered
    return [_fastest(fit)] if fit[0].timing is not None else ordered[:1]


def _by_rule(task: Task, trials: Sequence[Trial]) -> list[Trial]:
    """In the order in which a device tries them."""
    by_id = {trial.id: trial for trial in trials}
    return [by_id[one.id] for one in ranked(task.target.arch, [trial.built.candidate for trial in trials])]


def _closest(trials: Sequence[Trial]) -> Trial:
    """What misses the fewest goals, and of those the one that is least beyond the first that it misses."""
    return min(trials, key=lambda trial: (len(trial.missed), shortfall(trial.missed[0])))


def _fastest(trials: Sequence[Trial]) -> Trial:
    """By time; the first, which the rule prefers, unless another is clearly faster."""
    best = trials[0]
    for trial in trials[1:]:
        if relative_time(trial, best) < (MARGIN if best is trials[0] else 1.0):
            best = trial
    return best
