"""A fleet in memory, for tests of the worker and of what is built on it."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import msgspec

from outrider.runtime.api_client import (
    BundleInfo,
    DeviceInfo,
    JobInfo,
    ReleaseInfo,
    RolloutInfo,
    RolloutRequest,
    RolloutSettings,
)
from outrider.runtime.api_client.types import JobOutcome
from outrider.runtime.bundle import open_bundle
from outrider.runtime.durable import write_file
from outrider.runtime.errors import ConflictError, NotFoundError, OutriderError
from outrider.runtime.target import Target
from outrider.runtime.trust import decode_envelope


class FakeFleet:
    """What `outrider.trainer.fleet.Fleet` asks for, by the real fleet's rules, with no network and no database.

    `calls` is the order in which it was asked; `fail_next` makes the next call of a method raise an error.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.stages: list[str] = []
        self.bundles: dict[str, bytes] = {}
        self.up = True
        self._failures: dict[str, OutriderError] = {}
        self._devices: list[DeviceInfo] = []
        self._releases: list[ReleaseInfo] = []
        self._rollouts: list[RolloutInfo] = []
        self._jobs: dict[int, JobInfo] = {}
        self._numbers = itertools.count(1)

    # What a test sets up

    def fail_next(self, method: str, error: OutriderError) -> None:
        """Let the next call of `method` raise `error`."""
        self._failures[method] = error

    def add_device(self, name: str, target: Target, group: str = "default") -> DeviceInfo:
        """Enrol a device."""
        device = DeviceInfo(
            id=name,
            tenant="default",
            name=name,
            group=group,
            target=target,
            created=time.time(),
            online=True,
            last_seen=None,
            boot_id=None,
            revision_desired=0,
            revision_reported=0,
            active=None,
            reported=None,
            flagged=None,
        )
        self._devices.append(device)
        return device

    def open_job(self, model: str, reason: dict[str, Any] | None = None) -> JobInfo:
        """Open a retrain Job, as a trigger does."""
        job = JobInfo(
            id=next(self._numbers),
            trigger=None,
            model=model,
            state="OPEN",
            reason=reason or {},
            worker=None,
            lease_until=None,
            stage=None,
            detail=None,
            run_id=None,
            release=None,
            created=time.time(),
            finished=None,
        )
        self._jobs[job.id] = job
        return job

    def job(self, job: int) -> JobInfo:
        """A Job as it is now."""
        return self._jobs[job]

    def give_away(self, job: int, worker: str = "another") -> None:
        """Let another worker take a Job, as after the end of a lease."""
        self._jobs[job] = msgspec.structs.replace(self._jobs[job], state="CLAIMED", worker=worker)

    # What the worker asks

    def healthy(self) -> bool:
        """Whether `up` is set."""
        return self.up

    def devices(self, group: str | None = None) -> list[DeviceInfo]:
        """Devices, of one group where it is named."""
        self._called("devices")
        return [device for device in self._devices if group is None or device.group == group]

    def releases(self, name: str | None = None) -> list[ReleaseInfo]:
        """Releases, newest first."""
        self._called("releases")
        return [release for release in reversed(self._releases) if name is None or release.name == name]

    def rollouts(self) -> list[RolloutInfo]:
        """Rollouts, newest first."""
        self._called("rollouts")
        return list(reversed(self._rollouts))

    def publish_bundle(self, path: Path | str, envelope: bytes) -> BundleInfo:
        """Keep a bundle; the same bytes again change nothing, other bytes of the same name are a conflict."""
        self._called("publish_bundle")
        bundle, signed = open_bundle(path), decode_envelope(envelope)
        manifest = bundle.manifest
        known = next((r for r in self._releases if (r.name, r.version) == (manifest.name, manifest.version)), None)
        for old in known.bundles if known else ():
            if old.sha256 == bundle.sha256:
                return old
            if old.target == manifest.target:
                raise ConflictError(f"{manifest.name}:{manifest.version} for {manifest.target} is published already")
        number = known.number if known else len(self._releases) + 1
        info = BundleInfo(
            sha256=bundle.sha256,
            size=bundle.size,
            name=manifest.name,
            version=manifest.version,
            target=manifest.target,
            release=number,
            run_id=manifest.run_id,
            signed_by=tuple(signature.keyid for signature in signed.signatures),
            created=time.time(),
        )
        bundles = (*(known.bundles if known else ()), info)
        release = ReleaseInfo(
            number=number, name=manifest.name, version=manifest.version, created=time.time(), bundles=bundles
        )
        self._releases = [*(r for r in self._releases if r is not known), release]
        self.bundles[bundle.sha256] = Path(path).read_bytes()
        return info

    def download_bundle(self, sha256: str, path: Path) -> None:
        """Write a kept bundle."""
        self._called("download_bundle")
        if sha256 not in self.bundles:
            raise NotFoundError(f"there is no bundle {sha256[:16]}")
        write_file(path, self.bundles[sha256])

    def create_rollout(self, request: RolloutRequest) -> RolloutInfo:
        """Record a rollout."""
        self._called("create_rollout")
        release = next((r for r in self._releases if (r.name, r.version) == (request.name, request.version)), None)
        if release is None:
            raise NotFoundError(f"there is no release {request.name}:{request.version}")
        rollout = RolloutInfo(
            id=next(self._numbers),
            release=release.number,
            name=request.name,
            version=request.version,
            group=request.group,
            canary=request.canary,
            state="RUNNING",
            settings=RolloutSettings(
                **{name: getattr(request, name) for name in RolloutSettings.__struct_fields__},
            ),
            created=time.time(),
            finished=None,
            reason=None,
            job=request.job,
            counts={},
        )
        self._rollouts.append(rollout)
        return rollout

    def claim_job(self, worker: str, model: str | None = None) -> JobInfo | None:
        """The oldest open Job."""
        self._called("claim_job")
        for job in self._jobs.values():
            if job.state == "OPEN" and model in (None, job.model):
                return self._change(job.id, state="CLAIMED", worker=worker, stage="claimed")
        return None

    def heartbeat_job(self, job: int, stage: str, detail: str = "") -> JobInfo:
        """Note the stage."""
        self._called("heartbeat_job")
        self._still_claimed(job)
        self.stages.append(stage)
        return self._change(job, stage=stage, detail=detail)

    def finish_job(
        self,
        job: int,
        outcome: JobOutcome,
        detail: str = "",
        run_id: str | None = None,
        release: int | None = None,
    ) -> JobInfo:
        """End the Job."""
        self._called("finish_job")
        self._still_claimed(job)
        return self._change(job, state=outcome, detail=detail, run_id=run_id, release=release, finished=time.time())

    def _called(self, method: str) -> None:
        self.calls.append(method)
        error = self._failures.pop(method, None)
        if error is not None:
            raise error

    def _still_claimed(self, job: int) -> None:
        if self._jobs[job].state != "CLAIMED" or self._jobs[job].worker == "another":
            raise ConflictError(f"job {job} is no longer yours")

    def _change(self, job: int, **fields: Any) -> JobInfo:
        self._jobs[job] = msgspec.structs.replace(self._jobs[job], **fields)
        return self._jobs[job]
