"""What the manifest and the report say of each candidate, and why it was chosen or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from outrider.compiler.backends import Candidate
from outrider.compiler.making import Left, OutOfTime
from outrider.compiler.task import Made, Task, Trial
from outrider.runtime.bundle import CandidateRecord, Measurement, Parity
from outrider.runtime.errors import ParityError
from outrider.runtime.target import Refusal


def relative_time(trial: Trial, other: Trial) -> float:
    """Geometric mean of the ratios of median times, over the batch sizes that both were measured at."""
    if trial.timing is None or other.timing is None:
        return 1.0
    theirs = {found.batch: found.ns_per_row_median for found in other.timing.measured}
    ratios = [
        found.ns_per_row_median / theirs[found.batch] for found in trial.timing.measured if theirs.get(found.batch)
    ]
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else 1.0


def trial_record(task: Task, trial: Trial, shipped: Sequence[Trial]) -> CandidateRecord:
    """One that could be shipped: its rank, or why others were preferred."""
    rank = shipped.index(trial) + 1 if trial in shipped else None
    missed = [record.text for record in trial.missed]
    if missed and rank is not None:
        reason = f"misses {', '.join(missed)}, but comes closest: kept, marked as one that misses goals"
    elif rank is None:
        reason = f"misses {', '.join(missed)}" if missed else _slower(trial, shipped[0])
    elif task.measured and trial.timing is None:
        reason = f"the rule for {task.target.arch}; not measured, since Ctrl-C ended it"
    elif task.measured:
        reason = "the fastest here of those that meet the goals" if task.goals else "the fastest here"
    else:
        reason = _by_the_rule(task, trial)
    return _candidate_record(
        trial.built.candidate,
        "rejected" if rank is None or missed else "chosen" if rank == 1 else "shipped",
        reason,
        rank=rank,
        size=len(trial.built.data),
        measured=trial.timing.measured if trial.timing else (),
        parity=trial.parity,
    )


def by_rank(record: CandidateRecord) -> float:
    """What is shipped comes first, in order."""
    return math.inf if record.rank is None else record.rank


def _by_the_rule(task: Task, trial: Trial) -> str:
    beyond = [feature for feature in trial.built.entry.needs.features if feature not in task.target.features]
    whose = f"the rule for {task.target.arch}" + (f" with {' '.join(beyond)}" if beyond else "")
    if trial.timing is not None:
        return whose
    return f"{whose}; verified {trial.how}, not measured"


def _slower(trial: Trial, chosen: Trial) -> str:
    if trial.timing is None:
        return f"not measured; the rule prefers {chosen.id}"
    ratio = relative_time(trial, chosen)
    if ratio < 1.0:
        return f"takes {ratio:.2f} times the time of {chosen.id}: not clearly faster than the rule prefers"
    return f"takes {ratio:.2f} times the time of {chosen.id}"


def part_record(made: Made, measured: Mapping[int, Measurement]) -> CandidateRecord:
    """One that is good for a part of an artifact only."""
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


def left_record(left: Left) -> CandidateRecord:
    """A candidate that failed, was not tried, could not be verified, or is not close enough to the source."""
    why = left.why
    if isinstance(why, OutOfTime):
        return _candidate_record(left.candidate, "not eligible", str(why))
    if isinstance(why, Refusal):
        reason = f"not shipped: this machine cannot run it, so it cannot be verified ({why})"
        return _candidate_record(left.candidate, "rejected", reason)
    return _candidate_record(left.candidate, "rejected" if isinstance(why, ParityError) else "failed", str(why))


def refused_record(name: str, reason: str, precision: str = "fp32") -> CandidateRecord:
    """A backend that does not take the model, or not in this precision."""
    return _candidate_record(Candidate(name, precision), "not eligible", reason)


def _candidate_record(
    candidate: Candidate,
    outcome: Literal["chosen", "shipped", "rejected", "failed", "not eligible"],
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
