"""The fleet's tables. The database is the truth; the broker is a cache of it.

Times are seconds since the epoch, UTC. Sizes are bytes. Digests are lower-case hex. JSON columns hold encoded
msgspec records (`Target`, `Reported`, `Manifest`, …); decode them with `msgspec.convert` where they leave this layer.
A change here needs a migration in `migrations/versions/`; a test compares the two.
"""

from __future__ import annotations

from typing import Annotated, Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

Identifier = Annotated[str, mapped_column(String(64))]
Label = Annotated[str, mapped_column(String(128))]
Digest = Annotated[str, mapped_column(String(64))]
LongText = Annotated[str, mapped_column(Text)]
Seconds = Annotated[float, mapped_column(Double)]
Big = Annotated[int, mapped_column(BigInteger)]
Json = Annotated[dict[str, Any], mapped_column(JSON(none_as_null=True))]
JsonList = Annotated[list[dict[str, Any]], mapped_column(JSON(none_as_null=True))]
# SQLite counts up only a column declared INTEGER; PostgreSQL's would end at 2^31.
Serial = Annotated[
    int, mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
]


class Base(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(naming_convention=NAMING)


# Devices -----------------------------------------------------------------------------------------------------


class DeviceRow(Base):
    """One enrolled device. `flagged` says why its desired state is withheld, None where it is not.

    `session` and `boot_id` are those of the last presence; an offline message applies only to the same session.
    """

    __tablename__ = "devices"

    id: Mapped[Identifier] = mapped_column(primary_key=True)
    tenant: Mapped[Identifier]
    name: Mapped[Label]
    group: Mapped[Identifier] = mapped_column(index=True)
    secret_hash: Mapped[Digest] = mapped_column(unique=True)
    target: Mapped[Json]
    created: Mapped[Seconds]
    online: Mapped[bool] = mapped_column(default=False)
    boot_id: Mapped[Label | None]
    session: Mapped[Label | None]
    last_seen: Mapped[Seconds | None]
    revision_desired: Mapped[Big] = mapped_column(default=0)
    revision_reported: Mapped[Big] = mapped_column(default=0)
    reported: Mapped[Json | None]
    flagged: Mapped[LongText | None]
    active_bundle: Mapped[Digest | None]


class DeviceBootRow(Base):
    """A boot that a device was seen with. A superseded one coming back means that two machines share the identity."""

    __tablename__ = "device_boots"

    device: Mapped[Identifier] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    boot_id: Mapped[Label] = mapped_column(primary_key=True)
    first_seen: Mapped[Seconds]
    superseded: Mapped[bool] = mapped_column(default=False)


class EnrolmentTokenRow(Base):
    """A one-time token, by its SHA-256. `used_at` and `device` are set by the one enrolment that used it."""

    __tablename__ = "enrolment_tokens"

    hash: Mapped[Digest] = mapped_column(primary_key=True)
    group: Mapped[Identifier]
    created: Mapped[Seconds]
    expires: Mapped[Seconds]
    used_at: Mapped[Seconds | None]
    device: Mapped[Identifier | None]


class ApiKeyRow(Base):
    """An operator's or worker's API key, by its SHA-256."""

    __tablename__ = "api_keys"

    hash: Mapped[Digest] = mapped_column(primary_key=True)
    label: Mapped[Label]
    created: Mapped[Seconds]


class DesiredRow(Base):
    """Each desired document that was made for a device, signed: `envelope` is the DSSE JSON as published."""

    __tablename__ = "desired"

    device: Mapped[Identifier] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    rev: Mapped[Big] = mapped_column(primary_key=True, autoincrement=False)
    envelope: Mapped[LongText]
    doc: Mapped[Json]
    created: Mapped[Seconds]


# Registry ----------------------------------------------------------------------------------------------------


class ReleaseRow(Base):
    """A model version with one bundle a target. `number` only rises; the rollback floor refers to it."""

    __tablename__ = "releases"
    __table_args__ = (UniqueConstraint("name", "version"), {"sqlite_autoincrement": True})

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    name: Mapped[Label]
    version: Mapped[Label]
    created: Mapped[Seconds]


class BundleRow(Base):
    """One published bundle. `path` is relative to the registry's folder; `envelope` is its detached signature."""

    __tablename__ = "bundles"
    __table_args__ = (UniqueConstraint("name", "version", "target"),)

    sha256: Mapped[Digest] = mapped_column(primary_key=True)
    size: Mapped[Big]
    name: Mapped[Label]
    version: Mapped[Label]
    target: Mapped[Label]
    manifest: Mapped[Json]
    envelope: Mapped[LongText]
    path: Mapped[LongText]
    release: Mapped[int] = mapped_column(ForeignKey("releases.number"), index=True)
    run_id: Mapped[Label | None]
    provenance: Mapped[Json | None]
    baseline: Mapped[bytes | None] = mapped_column(LargeBinary)
    created: Mapped[Seconds]


# Rollouts ----------------------------------------------------------------------------------------------------


class RolloutRow(Base):
    """A release on its way to a group. `state` is PENDING, RUNNING, PAUSED, DONE or ABORTED.

    `canary` is how many devices the first wave holds; `seed` orders the devices into waves; `job_id` is the retrain
    Job that caused it, if any.
    """

    __tablename__ = "rollouts"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    release: Mapped[int] = mapped_column(ForeignKey("releases.number"), index=True)
    group: Mapped[Identifier]
    canary: Mapped[int]
    state: Mapped[Identifier] = mapped_column(index=True)
    settings: Mapped[Json]
    seed: Mapped[Label]
    created: Mapped[Seconds]
    finished: Mapped[Seconds | None]
    reason: Mapped[LongText | None]
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))


class DeploymentRow(Base):
    """A rollout on one device. `state` is PENDING until the device is given its document, then the device's own.

    `rev` is the revision of the document that asked for it, `attempt` counts from 1. `trials` is what the device found
    of each artifact of a bundle of several (`ArtifactTrial`), in this attempt.
    """

    __tablename__ = "deployments"
    __table_args__ = (UniqueConstraint("rollout", "device"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    rollout: Mapped[int] = mapped_column(ForeignKey("rollouts.id"), index=True)
    device: Mapped[Identifier] = mapped_column(ForeignKey("devices.id"), index=True)
    bundle: Mapped[Digest]
    wave: Mapped[int]
    rev: Mapped[Big | None]
    attempt: Mapped[int] = mapped_column(default=1)
    state: Mapped[Identifier]
    reason: Mapped[LongText | None]
    detail: Mapped[LongText | None]
    trials: Mapped[JsonList | None]
    created: Mapped[Seconds]
    updated: Mapped[Seconds]


class EventRow(Base):
    """One step of a device's update. (device, boot_id, seq) makes its application idempotent."""

    __tablename__ = "events"
    __table_args__ = (UniqueConstraint("device", "boot_id", "seq"),)

    id: Mapped[Serial]
    device: Mapped[Identifier] = mapped_column(ForeignKey("devices.id"))
    boot_id: Mapped[Label]
    seq: Mapped[Big]
    at: Mapped[Seconds]
    received: Mapped[Seconds]
    payload: Mapped[Json]
    job: Mapped[Identifier] = mapped_column(index=True)
    attempt: Mapped[int]
    from_state: Mapped[Identifier | None]
    to_state: Mapped[Identifier]
    reason: Mapped[LongText] = mapped_column(default="")


# Profiles, predictions and drift -----------------------------------------------------------------------------


class WindowRow(Base):
    """One profile window of one device and bundle; `payload` is the encoded `outrider.runtime.profile.Window`."""

    __tablename__ = "windows"
    __table_args__ = (UniqueConstraint("device", "boot_id", "seq"),)

    id: Mapped[Serial]
    device: Mapped[Identifier] = mapped_column(ForeignKey("devices.id"))
    bundle: Mapped[Digest] = mapped_column(index=True)
    boot_id: Mapped[Label]
    seq: Mapped[Big]
    start: Mapped[Seconds]
    end: Mapped[Seconds]
    rows: Mapped[int]
    payload: Mapped[bytes] = mapped_column(LargeBinary)
    received: Mapped[Seconds]


class PredictionRow(Base):
    """One prediction, and its label once both have come. `counted`: the performance test has counted the pair.

    Insert through `outrider.fleet.predictions.store_predictions`, which joins labels that came first.
    """

    __tablename__ = "predictions"
    __table_args__ = (Index("ix_predictions_bundle_counted", "bundle", "counted", "labelled_at"),)

    id: Mapped[Label] = mapped_column(primary_key=True)
    device: Mapped[Identifier] = mapped_column(ForeignKey("devices.id"))
    bundle: Mapped[Digest]
    score_bin: Mapped[int]
    prediction: Mapped[LongText]
    at: Mapped[Seconds]
    label: Mapped[LongText | None]
    labelled_at: Mapped[Seconds | None]
    counted: Mapped[bool] = mapped_column(default=False)


class WaitingLabelRow(Base):
    """A label whose prediction has not arrived yet."""

    __tablename__ = "waiting_labels"

    id: Mapped[Label] = mapped_column(primary_key=True)
    label: Mapped[LongText]
    received: Mapped[Seconds]


class DriftStateRow(Base):
    """The encoded state of one sequential test. `scope` is `fleet`, a device id, or a trigger's own name for itself."""

    __tablename__ = "drift_states"

    scope: Mapped[Label] = mapped_column(primary_key=True)
    bundle: Mapped[Digest] = mapped_column(primary_key=True)
    kind: Mapped[Identifier] = mapped_column(primary_key=True)
    state: Mapped[bytes] = mapped_column(LargeBinary)


class DriftEventRow(Base):
    """A test that crossed its threshold: which feature, since when, how large. `scope` is `fleet` or a device id."""

    __tablename__ = "drift_events"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    scope: Mapped[Label]
    model: Mapped[Label] = mapped_column(index=True)
    bundle: Mapped[Digest]
    feature: Mapped[LongText]
    since: Mapped[Seconds]
    at: Mapped[Seconds]
    effect: Mapped[Seconds]
    e_value: Mapped[Seconds]
    threshold: Mapped[Seconds]


# Triggers and jobs -------------------------------------------------------------------------------------------


class TriggerRow(Base):
    """A rule that opens a Job for `model`. `kind` names an entry of `outrider.fleet.triggers.TRIGGERS`."""

    __tablename__ = "triggers"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    name: Mapped[Label] = mapped_column(unique=True)
    model: Mapped[Label] = mapped_column(index=True)
    kind: Mapped[Identifier]
    settings: Mapped[Json]
    enabled: Mapped[bool] = mapped_column(default=True)
    created: Mapped[Seconds]


class JobRow(Base):
    """A retrain Job. `state` is OPEN, CLAIMED, DONE or FAILED; a claim holds until `lease_until`."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    trigger: Mapped[int | None] = mapped_column(ForeignKey("triggers.id"), index=True)
    model: Mapped[Label]
    state: Mapped[Identifier] = mapped_column(index=True)
    reason: Mapped[Json]
    worker: Mapped[Label | None]
    lease_until: Mapped[Seconds | None]
    stage: Mapped[Label | None]
    detail: Mapped[LongText | None]
    run_id: Mapped[Label | None]
    release: Mapped[int | None] = mapped_column(ForeignKey("releases.number"))
    created: Mapped[Seconds]
    finished: Mapped[Seconds | None]


# Audit -------------------------------------------------------------------------------------------------------


class AuditRow(Base):
    """One link of the audit chain: `hash` covers the row and `prev_hash`. Rows are only ever added."""

    __tablename__ = "audit"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[Serial]
    at: Mapped[Seconds]
    actor: Mapped[Label]
    action: Mapped[Label]
    subject: Mapped[LongText]
    detail: Mapped[Json]
    prev_hash: Mapped[Digest]
    hash: Mapped[Digest] = mapped_column(unique=True)
