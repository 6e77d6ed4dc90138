"""What the retrain worker asks of a fleet, and the real fleet behind it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from outrider.runtime.api_client import (
    BundleInfo,
    DeviceInfo,
    FleetClient,
    JobInfo,
    ReleaseInfo,
    RolloutInfo,
    RolloutRequest,
)
from outrider.runtime.api_client.http import exchange
from outrider.runtime.api_client.types import JobOutcome
from outrider.runtime.errors import StorageError

_DOWNLOAD_TIMEOUT_S = 600.0


class Fleet(Protocol):
    """The seam to the fleet. `FleetHttp` is the real one, `outrider.trainer.testing.FakeFleet` one in memory.

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


class FleetHttp(FleetClient):
    """A fleet by its HTTP API."""

    def download_bundle(self, sha256: str, path: Path) -> None:
        """Fetch a published bundle, which is written whole or not at all. Raises NotFoundError or StorageError."""
        answer = exchange(
            self._base,
            "GET",
            f"/v1/bundles/{sha256}/content",
            headers={**self._headers(), "Accept": "application/octet-stream"},
            timeout_s=max(self.timeout_s, _DOWNLOAD_TIMEOUT_S),
        )
        write_whole(path, answer.body)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all. Raises StorageError."""
    part = path.with_name(f".{os.getpid()}.{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as e:
        raise StorageError(f"cannot write {path}: {e.strerror}") from e
    finally:
        part.unlink(missing_ok=True)
