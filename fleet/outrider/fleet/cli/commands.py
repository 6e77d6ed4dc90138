"""What each `outrider fleet` command asks of the fleet, and how its answer is shown."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from outrider.runtime.api_client import FleetClient, RolloutInfo, RolloutRequest, RolloutSettings, TriggerSpec
from outrider.runtime.api_client.types import DeviceInfo, DriftEventInfo, JobInfo, TriggerInfo
from outrider.runtime.errors import UsageError
from outrider.runtime.messages import ArtifactTrial


@dataclass(frozen=True)
class Shown:
    """An answer: `data` for `--json`, `view` for people."""

    data: Any
    view: RenderableType


Command = Callable[[FleetClient, argparse.Namespace], Shown]

# Devices -----------------------------------------------------------------------------------------------------


def devices(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """List devices."""
    found = client.devices(group=arguments.group)
    return Shown(found, _devices(found))


def show_device(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """Show one device."""
    found = client.device(arguments.id)
    return Shown(found, Group(_devices([found]), *_trials((found.id, trial) for trial in found.trials)))


def resolve_device(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """Clear a device's flag."""
    found = client.resolve_device(arguments.id, arguments.reason)
    return Shown(found, _devices([found]))


def create_token(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """Make an enrolment token."""
    token = client.create_enrolment_token(arguments.group, arguments.ttl_s)
    return Shown({"token": token}, Text(token))


def _devices(found: Iterable[DeviceInfo]) -> Table:
    return _table(
        ("device", "group", "target", "online", "runs", "revision", "seen", "flagged"),
        (
            (
                item.id,
                item.group,
                item.target.name,
                "yes" if item.online else "no",
                f"{item.active.name}:{item.active.version}" if item.active else None,
                f"{item.revision_reported}/{item.revision_desired}",
                _when(item.last_seen),
                item.flagged,
            )
            for item in found
        ),
    )


# Registry ----------------------------------------------------------------------------------------------------


def bundles(client: FleetClient, _arguments: argparse.Namespace) -> Shown:
    """List bundles."""
    found = client.bundles()
    rows = ((f"{b.name}:{b.version}", b.target, b.release, b.size, b.sha256[:16], _when(b.created)) for b in found)
    return Shown(found, _table(("bundle", "target", "release", "bytes", "sha256", "published"), rows))


def releases(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """List releases."""
    found = client.releases(arguments.name)
    rows = (
        (r.number, f"{r.name}:{r.version}", ", ".join(b.target for b in r.bundles), _when(r.created)) for r in found
    )
    return Shown(found, _table(("release", "model", "targets", "created"), rows))


def lineage(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """Show where a release came from and went."""
    name, version = _release(arguments.release)
    found = client.lineage(name, version)
    tree = Tree(f"[bold]{name}:{version}[/bold], release {found.release}")
    tree.add(f"data {found.data_digest or 'not recorded'}").add(f"run {found.run_id or 'not recorded'}")
    if found.job is not None:
        tree.add(f"job {found.job.id}, by trigger {found.job.trigger}: {found.job.state}")
    made = tree.add("bundles")
    for bundle in found.bundles:
        made.add(f"{bundle.target} {bundle.sha256[:16]}, model {bundle.model_sha256[:16]}")
    went = tree.add("rollouts")
    for rollout in found.rollouts:
        places = ", ".join(f"{device} {state}" for device, state in rollout.devices.items())
        went.add(f"{rollout.id} to {rollout.group}, {rollout.state}: {places or 'no device yet'}")
    tree.add(f"runs on {', '.join(found.running_on) or 'no device'}")
    return Shown(found, tree)


# Rollouts ----------------------------------------------------------------------------------------------------


def rollouts(client: FleetClient, _arguments: argparse.Namespace) -> Shown:
    """List rollouts."""
    found = client.rollouts()
    return Shown(found, _rollouts(found))


def create_rollout(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """Create a rollout."""
    name, version = _release(arguments.bundle)
    given = {key: value for key in RolloutSettings.__struct_fields__ if (value := getattr(arguments, key)) is not None}
    values = {"name": name, "version": version, "group": arguments.group, "canary": arguments.canary, **given}
    try:
        request = msgspec.convert(values, RolloutRequest)
    except msgspec.ValidationError as e:
        raise UsageError(str(e)) from e
    found = client.create_rollout(request)
    return Shown(found, _rollouts([found]))


def show_rollout(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """Show one rollout."""
    return _one(client.rollout(arguments.id))


def pause_rollout(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """Pause a rollout."""
    return _one(client.pause_rollout(arguments.id, arguments.reason))


def resume_rollout(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """Resume a rollout."""
    return _one(client.resume_rollout(arguments.id, arguments.reason))


def abort_rollout(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """Abort a rollout."""
    return _one(client.abort_rollout(arguments.id, arguments.reason))


def events(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """List update steps."""
    found = client.events(arguments.device, arguments.rollout, limit=arguments.limit)
    rows = (
        (_when(e.at), e.device, e.job, e.attempt, f"{e.from_state or ''} → {e.to_state}", e.reason, e.detail)
        for e in found
    )
    return Shown(found, _table(("at", "device", "rollout", "attempt", "step", "reason", "detail"), rows))


def _one(found: RolloutInfo) -> Shown:
    deployments = _table(
        ("device", "wave", "attempt", "state", "reason", "detail", "updated"),
        ((d.device, d.wave, d.attempt, d.state, d.reason, d.detail, _when(d.updated)) for d in found.deployments),
    )
    trials = _trials((one.device, trial) for one in found.deployments for trial in one.trials)
    return Shown(found, Group(_rollouts([found]), deployments, *trials))


def _trials(found: Iterable[tuple[str, ArtifactTrial]]) -> list[Table]:
    """What devices found of the artifacts that they could run; nothing where no bundle had several."""
    rows = [
        (
            device,
            trial.candidate,
            "kept" if trial.kept else "passed" if trial.passed else trial.reason,
            _milliseconds(trial.p50_ms),
            _milliseconds(trial.p99_ms),
            f"{trial.rss_bytes / 1e6:.1f}" if trial.rss_bytes else None,
            trial.detail,
        )
        for device, trial in found
    ]
    return [_table(("device", "artifact", "found", "p50 ms", "p99 ms", "RSS MB", "detail"), rows)] if rows else []


def _milliseconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"


def _rollouts(found: Iterable[RolloutInfo]) -> Table:
    return _table(
        ("rollout", "release", "group", "canary", "state", "devices", "created", "reason"),
        (
            (
                item.id,
                f"{item.name}:{item.version}",
                item.group,
                item.canary,
                item.state,
                ", ".join(f"{number} {state}" for state, number in sorted(item.counts.items())),
                _when(item.created),
                item.reason,
            )
            for item in found
        ),
    )


# Drift, performance, triggers, jobs --------------------------------------------------------------------------


def drift(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """Show drift."""
    if arguments.model is None:
        events_found = client.drift_events()
        return Shown(events_found, _drift(events_found))
    found = client.drift(arguments.model)
    profiles = _table(
        ("version", "target", "windows", "rows", "from", "to"),
        ((p.version, p.target, p.windows, p.rows, _when(p.start), _when(p.end)) for p in found.profiles),
    )
    return Shown(found, Group(profiles, _drift(found.events)))


def performance(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """Show accuracy."""
    found = client.performance(arguments.model)
    rows = (
        (
            f"{p.model}:{p.version}",
            p.target,
            p.predictions,
            p.labelled,
            None if p.accuracy is None else f"{p.accuracy:.4f}",
        )
        for p in found
    )
    return Shown(found, _table(("bundle", "target", "predictions", "labelled", "accuracy"), rows))


def triggers(client: FleetClient, _arguments: argparse.Namespace) -> Shown:
    """List triggers."""
    found = client.triggers()
    return Shown(found, _triggers(found))


def create_trigger(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """Create a trigger."""
    settings = dict(_setting(text) for text in arguments.set)
    try:
        spec = msgspec.convert(
            {"name": arguments.name, "model": arguments.model, "kind": arguments.kind, "settings": settings},
            TriggerSpec,
        )
    except msgspec.ValidationError as e:
        raise UsageError(str(e)) from e
    found = client.create_trigger(spec)
    return Shown(found, _triggers([found]))


def jobs(client: FleetClient, _arguments: argparse.Namespace) -> Shown:
    """List Jobs."""
    found = client.jobs()
    return Shown(found, _jobs(found))


def open_job(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """Open a Job."""
    found = client.open_job(arguments.model, arguments.reason)
    return Shown(found, _jobs([found]))


def _jobs(found: Iterable[JobInfo]) -> Table:
    return _table(
        ("job", "model", "trigger", "state", "stage", "worker", "run", "release", "created", "finished", "detail"),
        (
            (
                *(job.id, job.model, job.trigger, job.state, job.stage, job.worker, job.run_id, job.release),
                *(_when(job.created), _when(job.finished), job.detail),
            )
            for job in found
        ),
    )


def _drift(found: Iterable[DriftEventInfo]) -> Table:
    return _table(
        ("at", "model", "where", "feature", "since", "effect", "evidence", "threshold"),
        (
            (
                _when(item.at),
                item.model,
                item.scope,
                item.feature,
                _when(item.since),
                f"{item.effect:.3f}",
                f"{item.e_value:.3g}",
                f"{item.threshold:.3g}",
            )
            for item in found
        ),
    )


def _triggers(found: Iterable[TriggerInfo]) -> Table:
    return _table(
        ("trigger", "name", "model", "kind", "settings", "enabled"),
        (
            (
                item.id,
                item.name,
                item.model,
                item.kind,
                ", ".join(f"{key}={value}" for key, value in item.settings.items()),
                "yes" if item.enabled else "no",
            )
            for item in found
        ),
    )


def _setting(text: str) -> tuple[str, bool | int | float | str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"{text!r} is not KEY=VALUE")
    for kind in (int, float):
        try:
            return key, kind(value)
        except ValueError:
            continue
    return key, {"true": True, "false": False}.get(value, value)


# Audit -------------------------------------------------------------------------------------------------------


def audit(client: FleetClient, arguments: argparse.Namespace) -> Shown:
    """Show or check the audit log."""
    if arguments.verify:
        report = client.verify_audit(arguments.known_head)
        verdict = "[green]intact[/green]" if report.intact else f"[red]broken: {report.problem}[/red]"
        place = f" at entry {report.broken_at}" if report.broken_at is not None else ""
        return Shown(report, f"{verdict}{place}; {report.entries} entries, head {report.head}")
    found = client.audit(arguments.limit)
    rows = (
        (_when(e.at), e.actor, e.action, e.subject, ", ".join(f"{key}={value}" for key, value in e.detail.items()))
        for e in found
    )
    return Shown(found, _table(("at", "who", "did", "to", "detail"), rows))


# Shared ------------------------------------------------------------------------------------------------------


def _release(text: str) -> tuple[str, str]:
    name, separator, version = text.partition(":")
    if not (name and separator and version):
        raise UsageError(f"{text!r} is not NAME:VERSION")
    return name, version


def _table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A plain table; texts are shown as they are, so nothing that a device sent is taken for markup."""
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    return table


def _when(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")
