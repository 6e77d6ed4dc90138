"""What the retrain worker asks of a fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from outrider.runtime.api_client import BundleInfo, DeviceInfo, JobInfo, ReleaseInfo, RolloutInfo, RolloutRequest
from outrider.runtime.api_client.types import JobOutcome


class Fleet(Protocol):
    """The seam to the fleet. `FleetClient` is the real one, `outrider.trainer.testing.FakeFleet` one in
    memory.

    Every call raises UnavailableError where the fleet is away; the calls on a Job raise ConflictError where another
    worker has it now.
    """

    def healthy(self) -> bool:
        """Whether a fleet answers."""

    def devices(self, group: str | None = None) -> list[DeviceInfo]:
        """Devices, of one group where it is named."""

    def releases(self, name: str | None = None) -> list[ReleaseInfo]:
        """Releases, newest first, of one model where it is named."""

    def rollouts(self) -> list[RolloutInfo]:
        """Rollouts, newest first."""

    def publish_bundle(self, path: Path | str, envelope: bytes) -> BundleInfo:
        """Publish a bundle with its signature; the same bytes again change nothing."""

    def download_bundle(self, sha256: str, path: Path) -> None:
        """Write a published bundle's bytes to `path`."""

    def create_rollout(self, request: RolloutRequest) -> RolloutInfo:
        """Roll a release out."""

    def claim_job(self, worker: str, model: str | None = None) -> JobInfo | None:
        """Take the oldest open Job of the model."""

    def heartbeat_job(self, job: int, stage: str, detail: str = "") -> JobInfo:
        """Prolong the lease."""

    def finish_job(
        self,
        job: int,
        outcome: JobOutcome,
        detail: str = "",
        run_id: str | None = None,
        release: int | None = None,
    ) -> JobInfo:
        """End the Job."""
