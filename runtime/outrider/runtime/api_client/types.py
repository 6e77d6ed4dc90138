"""What travels over the fleet's HTTP API, as immutable records: the one definition that client and server share.

Times are seconds since the epoch, UTC (float). Sizes are bytes. Requests refuse unknown fields; answers may grow
new ones, which an older client ignores.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from outrider.runtime.bundle.manifest import Name
from outrider.runtime.messages import ArtifactTrial, BundleRef, Reported
from outrider.runtime.messages.topics import Identifier
from outrider.runtime.target import Target

RolloutState = Literal["PENDING", "RUNNING", "PAUSED", "DONE", "ABORTED"]
JobState = Literal["OPEN", "CLAIMED", "DONE", "FAILED"]
JobOutcome = Literal["DONE", "FAILED"]
Percent = Annotated[float, Meta(ge=0, le=100)]
NotNegative = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Number = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Short = Annotated[str, Meta(max_length=128)]
PredictionId = Annotated[str, Meta(min_length=1, max_length=128)]


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what a client sends."""


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what the fleet answers."""


# Errors and health -------------------------------------------------------------------------------------------


class ErrorDetail(_Answer, frozen=True, kw_only=True):
    """`type` names a class of `outrider.runtime.errors`, or `Unauthorized` and `Forbidden`."""

    type: str
    message: str
    hint: str | None = None


class ErrorBody(_Answer, frozen=True, kw_only=True):
    """The body of every answer that is not 2xx."""

    error: ErrorDetail


class HealthInfo(_Answer, frozen=True, kw_only=True):
    """The fleet is up. `broker` is which MQTT broker it runs."""

    status: Literal["ok"]
    version: str
    broker: str


# Enrolment and devices ---------------------------------------------------------------------------------------


class TokenRequest(_Request, frozen=True, kw_only=True):
    """Asks for a one-time enrolment token; the device that uses it joins `group`."""

    group: Identifier = "default"
    ttl_s: Annotated[float, Meta(gt=0, le=30 * 86_400)] = 3600.0


class TokenInfo(_Answer, frozen=True, kw_only=True):
    """A one-time token. It is shown once; the fleet keeps only its SHA-256."""

    token: str
    group: str
    expires: float


class EnrolRequest(_Request, frozen=True, kw_only=True):
    """A device asks to join. `name` becomes its id where it is free; empty: the fleet picks one."""

    token: str
    target: Target
    name: Annotated[str, Meta(max_length=64)] = ""


class Enrolment(_Answer, frozen=True, kw_only=True):
    """A device's identity. `secret` authenticates it to the HTTP API, the MQTT pair to the broker.

    `trust` maps `desired` and `bundle` to the PEM public keys that the device pins.
    """

    tenant: str
    device: str
    secret: str
    mqtt_host: str
    mqtt_port: int
    mqtt_username: str
    mqtt_password: str
    api_url: str
    trust: dict[str, tuple[str, ...]]


class DeviceInfo(_Answer, frozen=True, kw_only=True):
    """One device. `flagged` says why its desired state is withheld, None where it is not.

    `trials` is filled for a single device: what it found of each artifact of the bundle that it runs, where that has
    several.
    """

    id: str
    tenant: str
    name: str
    group: str
    target: Target
    created: float
    online: bool
    last_seen: float | None
    boot_id: str | None
    revision_desired: int
    revision_reported: int
    active: BundleRef | None
    reported: Reported | None
    flagged: str | None
    trials: tuple[ArtifactTrial, ...] = ()


# Registry ----------------------------------------------------------------------------------------------------


class BundleInfo(_Answer, frozen=True, kw_only=True):
    """One published bundle. `release` is the number of the release it belongs to."""

    sha256: str
    size: int
    name: str
    version: str
    target: str
    release: int
    run_id: str | None
    signed_by: tuple[str, ...]
    created: float


class ReleaseInfo(_Answer, frozen=True, kw_only=True):
    """A model version and its bundles, one a target."""

    number: int
    name: str
    version: str
    created: float
    bundles: tuple[BundleInfo, ...]


# Rollouts ----------------------------------------------------------------------------------------------------


class RolloutSettings(_Request, frozen=True, kw_only=True):
    """How a rollout goes about it.

    - `soak_s`: seconds that the new bundle serves before a device commits it.
    - `max_err`, `p99_ms`: limits on the golden vectors' error and latency; None keeps the bundle's own, or no limit.
    - `jitter_s`: each device swaps at a random moment within so many seconds.
    - `max_in_flight`: devices that update at the same time after the canary; None: no limit.
    - `step_timeout_s`: an online device silent for so long in one state counts as failed.
    - `attempts`: how often a device that failed is tried.
    - `abort_percent`, `abort_minimum`: aborts once at least so many devices have failed, and they are more than so
      many percent of those that finished. Offline devices count as neither.
    """

    soak_s: NotNegative = 10.0
    max_err: NotNegative | None = None
    p99_ms: Positive | None = None
    jitter_s: NotNegative = 0.0
    max_in_flight: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    step_timeout_s: Positive = 600.0
    attempts: Annotated[int, Meta(ge=1, le=10)] = 2
    abort_percent: Percent = 0.0
    abort_minimum: Annotated[int, Meta(ge=1, le=1_000_000)] = 1


class RolloutRequest(RolloutSettings, frozen=True, kw_only=True):
    """Rolls a release out to a group: `canary` devices first, the others once those have committed.

    `job` is the retrain Job that made the release, if any.
    """

    name: Name
    version: Name
    group: Identifier = "default"
    canary: Annotated[int, Meta(ge=0, le=1_000_000)] = 1
    job: Number | None = None

    def settings(self) -> RolloutSettings:
        """The settings alone."""
        return RolloutSettings(**{name: getattr(self, name) for name in RolloutSettings.__struct_fields__})


class ReasonRequest(_Request, frozen=True, kw_only=True):
    """Why an operator does something; it goes to the audit log."""

    reason: str = ""


class DeploymentInfo(_Answer, frozen=True, kw_only=True):
    """A rollout on one device. `state` is PENDING, then the device's update state.

    `trials` is what the device found of each artifact, where the bundle has several.
    """

    id: int
    rollout: int
    device: str
    bundle: str
    wave: int
    rev: int | None
    attempt: int
    state: str
    reason: str | None
    detail: str | None
    created: float
    updated: float
    trials: tuple[ArtifactTrial, ...] = ()


class RolloutInfo(_Answer, frozen=True, kw_only=True):
    """One rollout. `counts` is the number of deployments by state; `deployments` is filled for a single rollout."""

    id: int
    release: int
    name: str
    version: str
    group: str
    canary: int
    state: RolloutState
    settings: RolloutSettings
    created: float
    finished: float | None
    reason: str | None
    job: int | None
    counts: dict[str, int]
    deployments: tuple[DeploymentInfo, ...] = ()


class EventInfo(_Answer, frozen=True, kw_only=True):
    """One step of a device's update. `job` is the rollout's id as text."""

    id: int
    device: str
    boot_id: str
    seq: int
    at: float
    received: float
    job: str
    attempt: int
    from_state: str | None
    to_state: str
    reason: str
    detail: str
    bundle: str


# Labels, performance and drift -------------------------------------------------------------------------------


class LabelItem(_Request, frozen=True, kw_only=True):
    """What the truth of one prediction turned out to be."""

    id: PredictionId
    label: int | float | str


class LabelsRequest(_Request, frozen=True, kw_only=True):
    """A batch of labels."""

    labels: Annotated[tuple[LabelItem, ...], Meta(max_length=100_000)]


class LabelsInfo(_Answer, frozen=True, kw_only=True):
    """`accepted` labels were stored; `joined` of them met their prediction at once, the others wait for it."""

    accepted: int
    joined: int


class PerformanceInfo(_Answer, frozen=True, kw_only=True):
    """How one bundle does on delayed labels. `accuracy` is None while there are none."""

    model: str
    version: str
    target: str
    bundle: str
    predictions: int
    labelled: int
    correct: int
    accuracy: float | None


class DriftEventInfo(_Answer, frozen=True, kw_only=True):
    """A feature's distribution has left the baseline.

    `scope` is `fleet` or a device id. `since` is the estimated start, `at` when it was noticed. `effect` is the
    largest distance between the two distribution functions, in [0, 1].
    """

    id: int
    scope: str
    model: str
    bundle: str
    feature: str
    since: float
    at: float
    effect: float
    e_value: float
    threshold: float


class BundleProfileInfo(_Answer, frozen=True, kw_only=True):
    """What profiles of one bundle have come in: windows, rows, and the time that they span."""

    bundle: str
    version: str
    target: str
    windows: int
    rows: int
    start: float | None
    end: float | None


class DriftInfo(_Answer, frozen=True, kw_only=True):
    """One model's profiles and drift events."""

    model: str
    profiles: tuple[BundleProfileInfo, ...]
    events: tuple[DriftEventInfo, ...]


# Triggers and jobs -------------------------------------------------------------------------------------------


class TriggerSpec(_Request, frozen=True, kw_only=True):
    """A rule that opens a retrain Job. The fleet checks `settings` by the rules of `kind` (`accuracy`, `drift`)."""

    name: Name
    model: Name
    kind: str
    settings: dict[str, bool | int | float | str] = {}
    enabled: bool = True


class TriggerInfo(_Answer, frozen=True, kw_only=True):
    """A stored trigger."""

    id: int
    name: str
    model: str
    kind: str
    settings: dict[str, Any]
    enabled: bool
    created: float


class JobRequest(_Request, frozen=True, kw_only=True):
    """An operator opens a retrain Job by hand."""

    model: Name
    reason: str = ""


class ClaimRequest(_Request, frozen=True, kw_only=True):
    """A worker asks for the oldest open Job, of `model` alone where that is named."""

    worker: Annotated[str, Meta(min_length=1, max_length=128)]
    model: Name | None = None


class HeartbeatRequest(_Request, frozen=True, kw_only=True):
    """A worker says that it still works on its Job, and prolongs its lease."""

    worker: Short
    stage: Short
    detail: str = ""


class FinishRequest(_Request, frozen=True, kw_only=True):
    """A worker ends its Job. `release` is the number of the release it published; None: the champion stays."""

    worker: Short
    outcome: JobOutcome
    detail: str = ""
    run_id: Short | None = None
    release: Number | None = None


class JobInfo(_Answer, frozen=True, kw_only=True):
    """A retrain Job. `reason` is what the trigger saw; a claim holds until `lease_until`."""

    id: int
    trigger: int | None
    model: str
    state: JobState
    reason: dict[str, Any]
    worker: str | None
    lease_until: float | None
    stage: str | None
    detail: str | None
    run_id: str | None
    release: int | None
    created: float
    finished: float | None


# Audit and lineage -------------------------------------------------------------------------------------------


class AuditEntry(_Answer, frozen=True, kw_only=True):
    """One link of the audit chain: `hash` covers the entry and `prev_hash`."""

    id: int
    at: float
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    prev_hash: str
    hash: str


class AuditReport(_Answer, frozen=True, kw_only=True):
    """Whether the chain holds. `head` is the last entry's hash; `broken_at` the first entry that does not fit."""

    entries: int
    intact: bool
    head: str
    broken_at: int | None
    problem: str | None


class LineageBundle(_Answer, frozen=True, kw_only=True):
    """A bundle of the release, with what it was made from."""

    sha256: str
    target: str
    run_id: str | None
    model_sha256: str
    data_digest: str | None
    tools: dict[str, str]
    provenance: dict[str, Any] | None


class LineageRollout(_Answer, frozen=True, kw_only=True):
    """A rollout of the release and where it went: device id to deployment state."""

    id: int
    group: str
    state: RolloutState
    job: int | None
    devices: dict[str, str]


class Lineage(_Answer, frozen=True, kw_only=True):
    """Data → run → bundle → rollout → devices, for one release. `job` is the retrain Job that made it."""

    name: str
    version: str
    release: int
    run_id: str | None
    data_digest: str | None
    job: JobInfo | None
    bundles: tuple[LineageBundle, ...]
    rollouts: tuple[LineageRollout, ...]
    running_on: tuple[str, ...]
