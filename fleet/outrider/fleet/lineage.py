"""Lineage: data → run → bundle → rollout → devices, gathered for one release."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from outrider.fleet.db import BundleRow, DeploymentRow, DeviceRow, JobRow, ReleaseRow, RolloutRow
from outrider.fleet.views import job_info
from outrider.runtime.api_client.types import Lineage, LineageBundle, LineageRollout, RolloutState
from outrider.runtime.errors import NotFoundError


def trace(session: Session, name: str, version: str) -> Lineage:
    """Gather what a release was made from and where it went. Raises NotFoundError."""
    release = find_release(session, name, version)
    rows = session.scalars(select(BundleRow).filter_by(release=release.number).order_by(BundleRow.target)).all()
    bundles = tuple(map(_bundle, rows))
    job = session.scalars(select(JobRow).filter_by(release=release.number).order_by(JobRow.id.desc())).first()
    running = session.scalars(
        select(DeviceRow.id)
        .where(DeviceRow.active_bundle.in_([bundle.sha256 for bundle in bundles]))
        .order_by(DeviceRow.id)
    )
    return Lineage(
        name=name,
        version=version,
        release=release.number,
        run_id=next((bundle.run_id for bundle in bundles if bundle.run_id), None),
        data_digest=next((bundle.data_digest for bundle in bundles if bundle.data_digest), None),
        job=None if job is None else job_info(job),
        bundles=bundles,
        rollouts=_rollouts(session, release.number),
        running_on=tuple(running),
    )


def find_release(session: Session, name: str, version: str) -> ReleaseRow:
    """A release by name and version. Raises NotFoundError."""
    release = session.scalars(select(ReleaseRow).filter_by(name=name, version=version)).first()
    if release is None:
        raise NotFoundError(f"no release {name}:{version} is published", hint="publish it with 'outrider publish'")
    return release


def _bundle(row: BundleRow) -> LineageBundle:
    return LineageBundle(
        sha256=row.sha256,
        target=row.target,
        run_id=row.run_id,
        model_sha256=row.manifest["source"]["sha256"],
        data_digest=_find(row.provenance, "data_digest"),
        tools=row.manifest.get("tools", {}),
        provenance=row.provenance,
    )


def _rollouts(session: Session, release: int) -> tuple[LineageRollout, ...]:
    rollouts = session.scalars(select(RolloutRow).filter_by(release=release).order_by(RolloutRow.id)).all()
    devices: dict[int, dict[str, str]] = {rollout.id: {} for rollout in rollouts}
    deployments = select(DeploymentRow).where(DeploymentRow.rollout.in_(devices)).order_by(DeploymentRow.device)
    for deployment in session.scalars(deployments):
        devices[deployment.rollout][deployment.device] = deployment.state
    return tuple(
        LineageRollout(
            id=rollout.id,
            group=rollout.group,
            state=cast("RolloutState", rollout.state),
            job=rollout.job_id,
            devices=devices[rollout.id],
        )
        for rollout in rollouts
    )


def _find(provenance: Any, key: str) -> str | None:
    """A text value by key, at whatever depth the provenance statement keeps it; the outermost wins."""
    level = [provenance]
    while level:
        objects = [item for item in level if isinstance(item, dict)]
        for item in objects:
            if isinstance(item.get(key), str):
                return str(item[key])
        level = [value for item in objects for value in item.values()]
    return None
