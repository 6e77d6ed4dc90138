"""The fleet's HTTP API as typed calls."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec

from outrider.runtime.api_client.http import Answer, exchange, parse_base_url
from outrider.runtime.api_client.types import (
    AuditEntry,
    AuditReport,
    BundleInfo,
    ClaimRequest,
    DeviceInfo,
    DriftEventInfo,
    DriftInfo,
    Enrolment,
    EnrolRequest,
    EventInfo,
    FinishRequest,
    HealthInfo,
    HeartbeatRequest,
    JobInfo,
    JobOutcome,
    JobRequest,
    LabelItem,
    LabelsInfo,
    LabelsRequest,
    Lineage,
    PerformanceInfo,
    ReasonRequest,
    ReleaseInfo,
    RolloutInfo,
    RolloutRequest,
    TokenInfo,
    TokenRequest,
    TriggerInfo,
    TriggerSpec,
)
from outrider.runtime.digests import hash_stream
from outrider.runtime.durable import storage_errors, whole_file
from outrider.runtime.errors import ApiError, DigestMismatchError, NotFoundError, OutriderError

T = TypeVar("T")
UPLOAD_TIMEOUT_S = 600.0


class FleetClient:
    """Calls one fleet. Each call is a connection of its own, so threads may share a client (but not a worker's).

    `key` is an API key (operators, workers) or a device's secret; None calls only what needs none. Every call
    raises UnavailableError where the fleet cannot be reached, the error that the fleet names where it refuses
    (NotFoundError, ConflictError, TrustError, …), BadInputError for a key that is not accepted, and ApiError for
    an answer that is not a fleet's.
    """

    def __init__(self, base_url: str, key: str | None = None, timeout_s: float = 10.0) -> None:
        self.base_url = base_url.rstrip("/")
        self.timeout_s = timeout_s
        self._base = parse_base_url(base_url)
        self._key = key
        self._worker = ""

    # Health, enrolment, devices

    def health(self) -> HealthInfo:
        """Version and broker of the fleet."""
        return self._get("/v1/health", HealthInfo)

    def healthy(self) -> bool:
        """Whether a fleet answers there."""
        try:
            self.health()
        except OutriderError:
            return False
        return True

    def create_enrolment_token(self, group: str = "default", ttl_s: float = 3600.0) -> str:
        """A one-time token, good for `ttl_s` seconds, that lets one device join `group`."""
        return self._post("/v1/enrolment-tokens", TokenRequest(group=group, ttl_s=ttl_s), TokenInfo).token

    def enrol(self, request: EnrolRequest) -> Enrolment:
        """Join the fleet as a device. Raises TrustError for a token that is unknown, used or expired."""
        return self._post("/v1/enrol", request, Enrolment)

    def devices(self, group: str | None = None) -> list[DeviceInfo]:
        """All devices, by id."""
        return self._get("/v1/devices", list[DeviceInfo], group=group)

    def device(self, device: str) -> DeviceInfo:
        """One device."""
        return self._get(f"/v1/devices/{_segment(device)}", DeviceInfo)

    def resolve_device(self, device: str, reason: str = "") -> DeviceInfo:
        """Clear a device's flag, so that it gets its desired state again."""
        return self._post(f"/v1/devices/{_segment(device)}/resolve", ReasonRequest(reason=reason), DeviceInfo)

    # Registry

    def publish_bundle(self, path: Path | str, envelope: bytes) -> BundleInfo:
        """Upload a bundle with its detached signature (a DSSE envelope as JSON).

        Raises TrustError for a signature that does not hold, BadBundleError for a file that is not a bundle,
        ConflictError where other bytes are published under the same name, version and target.
        """
        try:
            file = Path(path).open("rb")  # noqa: SIM115 - closed by the with below
        except OSError as e:
            raise NotFoundError(f"cannot read the bundle {path}: {e.strerror}") from e
        with file:
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(os.fstat(file.fileno()).st_size),
                "X-Outrider-Signature": base64.b64encode(envelope).decode("ascii"),
            }
            answer = exchange(
                self._base,
                "POST",
                "/v1/bundles",
                headers={**self._headers(), **headers},
                body=file,
                timeout_s=max(self.timeout_s, UPLOAD_TIMEOUT_S),
            )
        return _decode(answer, BundleInfo)

    def bundles(self) -> list[BundleInfo]:
        """All published bundles, newest first."""
        return self._get("/v1/bundles", list[BundleInfo])

    def bundle(self, sha256: str) -> BundleInfo:
        """One published bundle."""
        return self._get(f"/v1/bundles/{_segment(sha256)}", BundleInfo)

    def download_bundle(self, sha256: str, path: Path) -> None:
        """Write a published bundle to `path`, whole or not at all.

        Raises DigestMismatchError where other bytes came, StorageError.
        """
        with storage_errors(f"write {path}"), whole_file(path) as file:
            exchange(
                self._base,
                "GET",
                f"/v1/bundles/{_segment(sha256)}/content",
                headers={**self._headers(), "Accept": "application/octet-stream"},
                into=file,
                timeout_s=max(self.timeout_s, UPLOAD_TIMEOUT_S),
            )
            file.seek(0)
            if hash_stream(file)[0] != sha256:
                raise DigestMismatchError(f"the fleet answered with other bytes than those of bundle {sha256[:16]}")

    def releases(self, name: str | None = None) -> list[ReleaseInfo]:
        """All releases, newest first, of one model where `name` is given."""
        return self._get("/v1/releases", list[ReleaseInfo], name=name)

    def lineage(self, name: str, version: str) -> Lineage:
        """Data → run → bundle → rollout → devices of one release."""
        return self._get(f"/v1/releases/{_segment(name)}/{_segment(version)}/lineage", Lineage)

    # Rollouts

    def create_rollout(self, request: RolloutRequest) -> RolloutInfo:
        """Roll a release out to a group."""
        return self._post("/v1/rollouts", request, RolloutInfo)

    def rollouts(self) -> list[RolloutInfo]:
        """All rollouts, newest first, without their deployments."""
        return self._get("/v1/rollouts", list[RolloutInfo])

    def rollout(self, rollout: int) -> RolloutInfo:
        """One rollout with its deployments."""
        return self._get(f"/v1/rollouts/{rollout}", RolloutInfo)

    def pause_rollout(self, rollout: int, reason: str = "") -> RolloutInfo:
        """Give no further device the bundle. Devices under way go on."""
        return self._post(f"/v1/rollouts/{rollout}/pause", ReasonRequest(reason=reason), RolloutInfo)

    def resume_rollout(self, rollout: int, reason: str = "") -> RolloutInfo:
        """Go on with a paused rollout."""
        return self._post(f"/v1/rollouts/{rollout}/resume", ReasonRequest(reason=reason), RolloutInfo)

    def abort_rollout(self, rollout: int, reason: str = "") -> RolloutInfo:
        """End a rollout for good."""
        return self._post(f"/v1/rollouts/{rollout}/abort", ReasonRequest(reason=reason), RolloutInfo)

    def events(
        self, device: str | None = None, rollout: int | None = None, *, after: int = 0, limit: int = 1000
    ) -> list[EventInfo]:
        """Update steps in the order in which they arrived, from the event id after `after` on."""
        return self._get("/v1/events", list[EventInfo], device=device, rollout=rollout, after=after, limit=limit)

    # Labels, performance, drift

    def post_labels(self, labels: Sequence[LabelItem]) -> int:
        """Store labels by prediction id; returns how many were accepted. They may come before their predictions."""
        return self._post("/v1/labels", LabelsRequest(labels=tuple(labels)), LabelsInfo).accepted

    def performance(self, model: str) -> list[PerformanceInfo]:
        """Accuracy on delayed labels of each bundle of a model, newest bundle first."""
        return self._get(f"/v1/models/{_segment(model)}/performance", list[PerformanceInfo])

    def drift(self, model: str) -> DriftInfo:
        """Profiles and drift events of one model."""
        return self._get(f"/v1/models/{_segment(model)}/drift", DriftInfo)

    def drift_events(self, model: str | None = None) -> list[DriftEventInfo]:
        """Drift events, oldest first, of one model where it is named."""
        return self._get("/v1/drift-events", list[DriftEventInfo], model=model)

    # Triggers and jobs

    def create_trigger(self, spec: TriggerSpec) -> TriggerInfo:
        """Store a rule that opens retrain Jobs."""
        return self._post("/v1/triggers", spec, TriggerInfo)

    def triggers(self) -> list[TriggerInfo]:
        """All triggers."""
        return self._get("/v1/triggers", list[TriggerInfo])

    def open_job(self, model: str, reason: str = "") -> JobInfo:
        """Open a retrain Job by hand. Raises ConflictError where the model has an unfinished one."""
        return self._post("/v1/jobs", JobRequest(model=model, reason=reason), JobInfo)

    def jobs(self) -> list[JobInfo]:
        """All Jobs, newest first."""
        return self._get("/v1/jobs", list[JobInfo])

    def job(self, job: int) -> JobInfo:
        """One Job."""
        return self._get(f"/v1/jobs/{job}", JobInfo)

    def claim_job(self, worker: str, model: str | None = None) -> JobInfo | None:
        """Take the oldest open Job for `worker`, or None where there is none.

        This client then speaks as that worker in `heartbeat_job` and `finish_job`.
        """
        self._worker = worker
        answer = self._send("POST", "/v1/jobs/claim", ClaimRequest(worker=worker, model=model))
        return None if answer.status == 204 else _decode(answer, JobInfo)

    def heartbeat_job(self, job: int, stage: str, detail: str = "") -> JobInfo:
        """Prolong the lease and tell how far the Job is. Raises ConflictError where another worker has it now."""
        request = HeartbeatRequest(worker=self._worker, stage=stage, detail=detail)
        return self._post(f"/v1/jobs/{job}/heartbeat", request, JobInfo)

    def finish_job(
        self,
        job: int,
        outcome: JobOutcome,
        detail: str = "",
        run_id: str | None = None,
        release: int | None = None,
    ) -> JobInfo:
        """End the Job. Raises ConflictError where another worker has it now."""
        request = FinishRequest(worker=self._worker, outcome=outcome, detail=detail, run_id=run_id, release=release)
        return self._post(f"/v1/jobs/{job}/finish", request, JobInfo)

    # Audit

    def audit(self, limit: int = 100) -> list[AuditEntry]:
        """The last entries of the audit log, oldest first."""
        return self._get("/v1/audit", list[AuditEntry], limit=limit)

    def verify_audit(self, known_head: str | None = None) -> AuditReport:
        """Check the whole audit chain, and that a head that was kept elsewhere is still in it."""
        return self._get("/v1/audit/verify", AuditReport, known_head=known_head)

    # One exchange

    def _get(self, path: str, kind: type[T], **query: object) -> T:
        answer = exchange(self._base, "GET", path, query=query, headers=self._headers(), timeout_s=self.timeout_s)
        return _decode(answer, kind)

    def _post(self, path: str, request: msgspec.Struct, kind: type[T]) -> T:
        return _decode(self._send("POST", path, request), kind)

    def _send(self, method: str, path: str, request: msgspec.Struct) -> Answer:
        return exchange(
            self._base,
            method,
            path,
            headers={**self._headers(), "Content-Type": "application/json"},
            body=msgspec.json.encode(request),
            timeout_s=self.timeout_s,
        )

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        return {**headers, "Authorization": f"Bearer {self._key}"} if self._key else headers


def _decode(answer: Answer, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise ApiError(f"the fleet's answer cannot be read: {e}", hint="are client and fleet of one version?") from e


def _segment(text: str) -> str:
    """A path segment: nothing in it can leave its place in the path."""
    return quote(text, safe="")
