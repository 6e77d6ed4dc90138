"""Carries out rollouts: reads them from the database, lets `rollouts.decide` decide, and writes what it decided.

Then every device whose document no longer says what it should gets a new one, of a higher revision. Which those are
is read from the database alone, so a step that a crash cut short is made up for by the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from outrider.fleet import audit
from outrider.fleet.db import DeploymentRow, DesiredRow, DeviceRow, ReleaseRow, RolloutRow
from outrider.fleet.desired import MAIN_SLOT, Assignment, build_desired, choose_bundle, sign_desired
from outrider.fleet.manager.catalogue import Catalogue
from outrider.fleet.rollouts import PENDING, Decisions, Ended, Given, Member, Placed, Rollout, decide
from outrider.fleet.settings import FleetSettings
from outrider.runtime.api_client.types import RolloutSettings
from outrider.runtime.errors import BadInputError
from outrider.runtime.messages import TERMINAL_STATES, Address
from outrider.runtime.target import Target
from outrider.runtime.trust import PrivateKey

log = logging.getLogger(__name__)

DOCUMENTS_A_STEP = 1000
# States of a deployment that its device's document need not name any longer.
_WITHDRAWN = "SUPERSEDED"
# The reason of a REJECTED deployment whose document cannot be made.
_UNSENDABLE = "document"

Deployed = tuple[DeploymentRow, RolloutRow]


class Deployer:
    """One step of all rollouts at a time. Belongs to one thread."""

    def __init__(self, signer: PrivateKey, settings: FleetSettings, catalogue: Catalogue) -> None:
        self._signer = signer
        self._settings = settings
        self._catalogue = catalogue
        self._renewal_due = 0.0

    def step(self, session: Session, *, online_since: Callable[[str], float], now: float) -> bool:
        """Move all rollouts on, and make the documents that follow. True: there is more to do at once."""
        for rollout, newer in _current(session):
            self._move(session, rollout, newer, online_since, now)
        session.flush()
        stale = self._stale(session, now)
        with session.no_autoflush:
            deployments = _deployments_of(session, stale)
            for device in stale:
                self._make_document(session, device, deployments.get(device.id, ()), now)
        return len(stale) == DOCUMENTS_A_STEP

    # Rollouts ---------------------------------------------------------------------------------------------------

    def _move(
        self,
        session: Session,
        row: RolloutRow,
        newer: int | None,
        online_since: Callable[[str], float],
        now: float,
    ) -> None:
        settings = msgspec.convert(row.settings, RolloutSettings)
        placed = _placed(session, row.id)
        members = self._members(session, row, placed, online_since)
        rollout = Rollout(
            id=row.id,
            state=row.state,  # type: ignore[arg-type]  # only these states are ever written
            canary=row.canary,
            seed=row.seed,
            settings=settings,
            superseded_by=newer,
        )
        decisions = decide(rollout, members, [item for item, _bundle in placed.values()], now)
        for ended in decisions.end:
            _end(session, row, placed, ended, now)
        for given in decisions.give:
            _give(session, row, placed, given, now)
        _enter(session, row, decisions, now)

    def _members(
        self,
        session: Session,
        row: RolloutRow,
        placed: Mapping[str, tuple[Placed, str]],
        online_since: Callable[[str], float],
    ) -> list[Member]:
        bundles = self._catalogue.release(session, row.release)
        columns = select(DeviceRow.id, DeviceRow.online, DeviceRow.flagged, DeviceRow.target)
        members = []
        for identifier, online, flagged, target in session.execute(columns.where(DeviceRow.group == row.group)):
            bundle: str | None = placed[identifier][1] if identifier in placed else None
            refusal = ""
            if not bundle:
                fitting, refusal = choose_bundle(msgspec.convert(target, Target), bundles)
                bundle = None if fitting is None else fitting.sha256
            members.append(
                Member(
                    id=identifier,
                    online=online,
                    bundle=bundle,
                    refusal=refusal,
                    flagged=flagged is not None,
                    online_since=online_since(identifier),
                )
            )
        return members

    # Documents --------------------------------------------------------------------------------------------------

    def _stale(self, session: Session, now: float) -> Sequence[DeviceRow]:
        """Devices whose newest document does not say what it should, or will expire."""
        given = and_(DeploymentRow.rev.is_(None), DeploymentRow.state.not_in(TERMINAL_STATES))
        withdrawn = and_(
            DeploymentRow.rev == DeviceRow.revision_desired,
            or_(DeploymentRow.state == _WITHDRAWN, RolloutRow.state == "ABORTED"),
        )
        changed = (
            select(DeviceRow)
            .join(DeploymentRow, DeploymentRow.device == DeviceRow.id)
            .join(RolloutRow, RolloutRow.id == DeploymentRow.rollout)
            .where(or_(given, withdrawn))
            .distinct()
            .limit(DOCUMENTS_A_STEP)
        )
        # DISTINCT cannot compare JSON columns on PostgreSQL: find the ids first.
        identifiers = session.scalars(changed.with_only_columns(DeviceRow.id)).all()
        stale = list(session.scalars(select(DeviceRow).where(DeviceRow.id.in_(identifiers)).order_by(DeviceRow.id)))
        if len(stale) < DOCUMENTS_A_STEP and now >= self._renewal_due:
            stale += [device for device in self._expiring(session, now) if device not in stale]
        return stale

    def _expiring(self, session: Session, now: float) -> Sequence[DeviceRow]:
        """Devices whose document has lived half its life, looked for once a minute at most."""
        self._renewal_due = now + min(60.0, self._settings.desired_ttl_s / 10)
        newest = and_(DesiredRow.device == DeviceRow.id, DesiredRow.rev == DeviceRow.revision_desired)
        old = DesiredRow.created < now - self._settings.desired_ttl_s / 2
        return session.scalars(select(DeviceRow).join(DesiredRow, newest).where(old).limit(DOCUMENTS_A_STEP)).all()

    def _make_document(self, session: Session, device: DeviceRow, deployments: Sequence[Deployed], now: float) -> None:
        """Sign and store the next revision for a device."""
        wanted = _wanted(device, deployments)
        slots = {} if wanted is None else {MAIN_SLOT: self._assignment(session, *wanted)}
        rev = device.revision_desired + 1
        urls = {slot.bundle.sha256: [self._settings.bundle_url(slot.bundle.sha256)] for slot in slots.values()}
        address = Address(tenant=device.tenant, device=device.id)
        document = build_desired(address, slots, rev=rev, now=now, ttl_s=self._settings.desired_ttl_s, urls=urls)
        try:
            envelope = sign_desired(document, self._signer)
        except BadInputError as e:
            assert wanted is not None  # a document without slots is small
            deployment, rollout = wanted
            log.error("rollout %d cannot reach %s: %s", rollout.id, device.id, e)
            deployment.state, deployment.rev, deployment.updated = "REJECTED", rev, now
            deployment.reason, deployment.detail = _UNSENDABLE, str(e)
            return
        session.add(
            DesiredRow(
                device=device.id,
                rev=rev,
                envelope=envelope.decode(),
                doc=msgspec.to_builtins(document),
                created=now,
            )
        )
        device.revision_desired = rev
        if wanted is not None:
            wanted[0].rev = rev
        for deployment, _rollout in deployments:
            if deployment.rev is None:
                deployment.rev = rev

    def _assignment(self, session: Session, deployment: DeploymentRow, rollout: RolloutRow) -> Assignment:
        entry = self._catalogue.entry(session, deployment.bundle)
        assert entry is not None  # a published bundle is never taken back
        return Assignment(
            job=str(rollout.id),
            attempt=deployment.attempt,
            bundle=entry.facts,
            settings=msgspec.convert(rollout.settings, RolloutSettings),
        )


def _current(session: Session) -> list[tuple[RolloutRow, int | None]]:
    """Rollouts to look at, each with the newer one that takes its place, if any.

    The newest of a group that is not aborted is looked at for ever, since devices may join; older ones until nothing
    of them is left.
    """
    newest: dict[str, int] = {}
    for identifier, group in session.execute(
        select(RolloutRow.id, RolloutRow.group).where(RolloutRow.state != "ABORTED").order_by(RolloutRow.id)
    ):
        newest[group] = identifier
    unfinished = select(DeploymentRow.rollout).where(DeploymentRow.state.not_in(TERMINAL_STATES))
    rows = session.scalars(
        select(RolloutRow)
        .where(
            or_(
                RolloutRow.id.in_(list(newest.values())),
                RolloutRow.state.in_(("PENDING", "RUNNING", "PAUSED")),
                RolloutRow.id.in_(unfinished),
            )
        )
        .order_by(RolloutRow.id)
    ).all()
    found: list[tuple[RolloutRow, int | None]] = []
    for row in rows:
        latest = newest.get(row.group)
        superseded = row.state != "ABORTED" and latest is not None and latest != row.id
        found.append((row, latest if superseded else None))
    return found


def _deployments_of(session: Session, devices: Sequence[DeviceRow]) -> dict[str, list[Deployed]]:
    """All deployments of these devices with their rollouts."""
    found: dict[str, list[Deployed]] = {}
    query = select(DeploymentRow, RolloutRow).join(RolloutRow, RolloutRow.id == DeploymentRow.rollout)
    for deployment, rollout in session.execute(
        query.where(DeploymentRow.device.in_([device.id for device in devices]))
    ):
        found.setdefault(deployment.device, []).append((deployment, rollout))
    return found


def _wanted(device: DeviceRow, deployments: Sequence[Deployed]) -> Deployed | None:
    """What a device shall run: the newest deployment that was neither withdrawn nor aborted, of its own group first."""
    standing = [
        (deployment, rollout)
        for deployment, rollout in deployments
        if deployment.bundle
        and deployment.state != _WITHDRAWN
        and deployment.reason != _UNSENDABLE
        and rollout.state != "ABORTED"
    ]
    return max(standing, key=lambda pair: (pair[1].group == device.group, pair[1].id), default=None)


def _placed(session: Session, rollout: int) -> dict[str, tuple[Placed, str]]:
    """A rollout's deployments by device, each with its bundle (empty where there was none)."""
    columns = select(
        DeploymentRow.device,
        DeploymentRow.bundle,
        DeploymentRow.wave,
        DeploymentRow.attempt,
        DeploymentRow.state,
        DeploymentRow.updated,
        DeploymentRow.reason,
    )
    return {
        device: (
            Placed(device=device, wave=wave, attempt=attempt, state=state, updated=updated, reason=reason or ""),
            bundle,
        )
        for device, bundle, wave, attempt, state, updated, reason in session.execute(columns.filter_by(rollout=rollout))
    }


def _deployment(
    session: Session, rollout: RolloutRow, placed: Mapping[str, object], device: str, now: float
) -> DeploymentRow:
    """A device's deployment to change, a new one where it is not `placed`."""
    if device in placed:
        row = session.scalars(select(DeploymentRow).filter_by(rollout=rollout.id, device=device)).one()
    else:
        row = DeploymentRow(rollout=rollout.id, device=device, bundle="", wave=-1, attempt=1, state="", created=now)
        session.add(row)
    row.updated = now
    return row


def _end(session: Session, rollout: RolloutRow, placed: Mapping[str, object], ended: Ended, now: float) -> None:
    row = _deployment(session, rollout, placed, ended.device, now)
    row.state, row.reason, row.detail = ended.state, ended.reason, ended.detail or None


def _give(session: Session, rollout: RolloutRow, placed: Mapping[str, object], given: Given, now: float) -> None:
    row = _deployment(session, rollout, placed, given.device, now)
    row.bundle, row.wave, row.attempt = given.bundle, given.wave, given.attempt
    row.state, row.rev, row.reason, row.detail, row.trials = PENDING, None, None, None, None


def _enter(session: Session, row: RolloutRow, decisions: Decisions, now: float) -> None:
    before = row.state
    if before != "ABORTED" and decisions.reason != "paused":
        row.reason = decisions.reason or None
    if decisions.state == before:
        return
    row.state = decisions.state
    if decisions.state in ("DONE", "ABORTED"):
        row.finished = now
    release = session.get(ReleaseRow, row.release)
    audit.record(
        session,
        actor="fleet",
        action="rollout.move",
        subject=f"rollout:{row.id}",
        detail={
            "from": before,
            "to": decisions.state,
            "reason": decisions.reason,
            "release": f"{release.name}:{release.version}" if release else "",
        },
        now=now,
    )
    log.info("rollout %d: %s → %s %s", row.id, before, decisions.state, decisions.reason)
