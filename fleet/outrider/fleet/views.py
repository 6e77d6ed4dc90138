"""Database rows as the records of the API."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from outrider.fleet.db import (
    AuditRow,
    BundleRow,
    DeploymentRow,
    DeviceRow,
    DriftEventRow,
    EventRow,
    JobRow,
    ReleaseRow,
    RolloutRow,
    TriggerRow,
)
from outrider.runtime.api_client.types import (
    AuditEntry,
    BundleInfo,
    DeploymentInfo,
    DeviceInfo,
    DriftEventInfo,
    EventInfo,
    JobInfo,
    ReleaseInfo,
    RolloutInfo,
    RolloutSettings,
    TriggerInfo,
)
from outrider.runtime.messages import ArtifactTrial, BundleRef, Reported
from outrider.runtime.target import Target
from outrider.runtime.trust import decode_envelope

T = TypeVar("T", bound=msgspec.Struct)


def _same_fields(row: object, kind: type[T], **others: object) -> T:
    """A record whose fields are `others`, and the row's columns of the same names."""
    return kind(**{name: getattr(row, name) for name in kind.__struct_fields__ if name not in others}, **others)


def device_infos(session: Session, rows: list[DeviceRow], *, trials: bool = False) -> list[DeviceInfo]:
    """Devices with the names of what they run, and what they found of its artifacts where that is asked for."""
    wanted = {row.active_bundle for row in rows if row.active_bundle}
    bundles = {
        bundle.sha256: BundleRef(sha256=bundle.sha256, name=bundle.name, version=bundle.version)
        for bundle in session.execute(
            select(BundleRow.sha256, BundleRow.name, BundleRow.version).where(BundleRow.sha256.in_(wanted))
        )
    }
    return [
        _device_info(row, bundles.get(row.active_bundle or ""), _last_trials(session, row) if trials else ())
        for row in rows
    ]


def _last_trials(session: Session, row: DeviceRow) -> tuple[ArtifactTrial, ...]:
    """What a device found last of the artifacts of the bundle that it runs."""
    if row.active_bundle is None:
        return ()
    query = (
        select(DeploymentRow.trials)
        .where(DeploymentRow.device == row.id, DeploymentRow.bundle == row.active_bundle)
        .where(DeploymentRow.trials.is_not(None))
        .order_by(DeploymentRow.id.desc())
        .limit(1)
    )
    return _trials(session.scalars(query).first())


def _trials(stored: list[dict[str, Any]] | None) -> tuple[ArtifactTrial, ...]:
    return msgspec.convert(stored or [], tuple[ArtifactTrial, ...])


def _device_info(row: DeviceRow, active: BundleRef | None, trials: tuple[ArtifactTrial, ...]) -> DeviceInfo:
    return _same_fields(
        row,
        DeviceInfo,
        target=msgspec.convert(row.target, Target),
        active=active,
        reported=None if row.reported is None else msgspec.convert(row.reported, Reported),
        trials=trials,
    )


def bundle_info(row: BundleRow) -> BundleInfo:
    """A bundle with the ids of the keys that signed it."""
    signatures = decode_envelope(row.envelope.encode()).signatures
    return _same_fields(row, BundleInfo, signed_by=tuple(signature.keyid for signature in signatures))


def release_infos(session: Session, rows: list[ReleaseRow]) -> list[ReleaseInfo]:
    """Releases with their bundles."""
    bundles: dict[int, list[BundleInfo]] = {row.number: [] for row in rows}
    for bundle in session.scalars(select(BundleRow).where(BundleRow.release.in_(bundles)).order_by(BundleRow.target)):
        bundles[bundle.release].append(bundle_info(bundle))
    return [_same_fields(row, ReleaseInfo, bundles=tuple(bundles[row.number])) for row in rows]


def rollout_infos(session: Session, rows: list[RolloutRow], *, deployments: bool = False) -> list[RolloutInfo]:
    """Rollouts with the number of deployments by state, and the deployments themselves where asked for."""
    identifiers = [row.id for row in rows]
    releases = {
        release.number: release
        for release in session.scalars(select(ReleaseRow).where(ReleaseRow.number.in_({row.release for row in rows})))
    }
    counts: dict[int, dict[str, int]] = {identifier: {} for identifier in identifiers}
    for rollout, state, number in session.execute(
        select(DeploymentRow.rollout, DeploymentRow.state, func.count())
        .where(DeploymentRow.rollout.in_(identifiers))
        .group_by(DeploymentRow.rollout, DeploymentRow.state)
    ):
        counts[rollout][state] = number
    listed: dict[int, list[DeploymentInfo]] = {identifier: [] for identifier in identifiers}
    if deployments:
        for row in session.scalars(
            select(DeploymentRow)
            .where(DeploymentRow.rollout.in_(identifiers))
            .order_by(DeploymentRow.wave, DeploymentRow.device)
        ):
            listed[row.rollout].append(_same_fields(row, DeploymentInfo, trials=_trials(row.trials)))
    return [_rollout_info(row, releases[row.release], counts[row.id], tuple(listed[row.id])) for row in rows]


def _rollout_info(
    row: RolloutRow, release: ReleaseRow, counts: dict[str, int], deployments: tuple[DeploymentInfo, ...]
) -> RolloutInfo:
    return msgspec.convert(
        {
            "id": row.id,
            "release": row.release,
            "name": release.name,
            "version": release.version,
            "group": row.group,
            "canary": row.canary,
            "state": row.state,
            "settings": msgspec.convert(row.settings, RolloutSettings),
            "created": row.created,
            "finished": row.finished,
            "reason": row.reason,
            "job": row.job_id,
            "counts": counts,
            "deployments": deployments,
        },
        RolloutInfo,
    )


def event_info(row: EventRow) -> EventInfo:
    """An update step."""
    return EventInfo(
        id=row.id,
        device=row.device,
        boot_id=row.boot_id,
        seq=row.seq,
        at=row.at,
        received=row.received,
        job=row.job,
        attempt=row.attempt,
        from_state=row.from_state,
        to_state=row.to_state,
        reason=row.reason,
        detail=str(row.payload.get("detail", "")),
        bundle=str(row.payload.get("bundle", "")),
    )


def drift_event_info(row: DriftEventRow) -> DriftEventInfo:
    """A drift event."""
    return _same_fields(row, DriftEventInfo)


def trigger_info(row: TriggerRow) -> TriggerInfo:
    """A trigger."""
    return _same_fields(row, TriggerInfo)


def job_info(row: JobRow) -> JobInfo:
    """A Job."""
    return _same_fields(row, JobInfo)


def audit_entry(row: AuditRow) -> AuditEntry:
    """An entry of the audit log."""
    return _same_fields(row, AuditEntry)
