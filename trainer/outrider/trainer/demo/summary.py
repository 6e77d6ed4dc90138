"""What the demo shows at its end, and the checks that it makes of itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table as RichTable

from outrider.runtime.api_client.types import DriftEventInfo, JobInfo, RolloutInfo


@dataclass
class Facts:
    """Everything that the summary is made of, as it was observed. Accuracies are shares, times seconds."""

    seconds: dict[str, float] = field(default_factory=dict)
    broker: str = ""
    note: str = ""
    devices: int = 0
    rollouts: list[RolloutInfo] = field(default_factory=list)
    versions: dict[str, list[str]] = field(default_factory=dict)
    alarms_before_shift: int = 0
    jobs_before_shift: int = 0
    drift: list[DriftEventInfo] = field(default_factory=list)
    job: JobInfo | None = None
    accuracy_steady: float = math.nan
    accuracy_shifted_before: float = math.nan
    accuracy_shifted_after: float = math.nan
    audit_entries: int = 0
    audit_intact: bool = False
    lineage: str = ""


def failures(facts: Facts) -> list[str]:
    """What does not hold, in words; empty where the loop did what it is for."""
    problems = []
    for number, rollout in enumerate(facts.rollouts, start=1):
        committed = rollout.counts.get("COMMITTED", 0)
        if committed != facts.devices:
            problems.append(f"rollout {number} committed on {committed} of {facts.devices} devices")
    if len(facts.rollouts) != 2:
        problems.append(f"expected two rollouts, saw {len(facts.rollouts)}")
    wrong = {device: versions for device, versions in facts.versions.items() if len(versions) != 2}
    if wrong or len(facts.versions) != facts.devices:
        problems.append(f"not every device committed two versions: {facts.versions}")
    if facts.alarms_before_shift:
        problems.append(f"{facts.alarms_before_shift} drift alarms on unshifted rows")
    if facts.jobs_before_shift:
        problems.append(f"{facts.jobs_before_shift} jobs opened on unshifted rows")
    if not facts.drift:
        problems.append("the shift raised no drift event")
    problems += _job_failures(facts)
    if not facts.accuracy_shifted_after > facts.accuracy_shifted_before:
        problems.append("retraining did not raise the accuracy on shifted rows")
    if not facts.audit_intact:
        problems.append("the audit chain does not hold")
    return problems


def _job_failures(facts: Facts) -> list[str]:
    if facts.job is None:
        return ["no job was opened"]
    reason = facts.job.reason
    problems = []
    if reason.get("kind") != "accuracy" or not reason.get("e_value", 0.0) >= reason.get("threshold", math.inf):
        problems.append(f"the job was not opened by a tested breach: {reason}")
    if len(facts.rollouts) == 2 and facts.rollouts[1].job != facts.job.id:
        problems.append("the second rollout does not come from the job")
    return problems


def show(console: Console, facts: Facts) -> None:
    """Print the summary."""
    console.print()
    console.rule("[bold]Summary")
    console.print(f"Data: {facts.note}. Broker: {facts.broker}.")
    versions = RichTable("device", "versions committed, in order")
    for device, committed in sorted(facts.versions.items()):
        versions.add_row(device, " → ".join(committed))
    console.print(versions)
    times = RichTable("step", "seconds")
    for step, seconds in facts.seconds.items():
        times.add_row(step, f"{seconds:.1f}")
    times.add_row("[bold]total", f"[bold]{sum(facts.seconds.values()):.1f}")
    console.print(times)
    console.print(f"Alarms on unshifted data: {facts.alarms_before_shift}")
    strongest: dict[str, DriftEventInfo] = {}
    for event in facts.drift:
        if event.feature not in strongest or event.e_value > strongest[event.feature].e_value:
            strongest[event.feature] = event
    for event in sorted(strongest.values(), key=lambda event: -event.effect):
        console.print(f"Drift: {event.feature} moved by {event.effect:.2f} (largest |F - F0|), on {event.scope}")
    if facts.job is not None:
        reason = facts.job.reason
        console.print(
            f"Job {facts.job.id}: accuracy {reason.get('accuracy', math.nan):.1%} on {reason.get('labels')} labels, "
            f"floor {reason.get('floor', math.nan):.0%}, e-value {reason.get('e_value', math.nan):.3g} "
            f"≥ {reason.get('threshold', math.nan):.3g}"
        )
    accuracy = RichTable("rows", "model", "accuracy")
    accuracy.add_row("unshifted", "first", f"{facts.accuracy_steady:.1%}")
    accuracy.add_row("shifted", "first", f"{facts.accuracy_shifted_before:.1%}")
    accuracy.add_row("shifted", "retrained", f"[bold]{facts.accuracy_shifted_after:.1%}")
    console.print(accuracy)
    console.print(f"Lineage: {facts.lineage}", soft_wrap=True)
    console.print(f"Audit: {facts.audit_entries} entries, chain {'intact' if facts.audit_intact else 'BROKEN'}")
