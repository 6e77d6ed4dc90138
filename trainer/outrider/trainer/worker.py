"""The retrain worker: claims Jobs, does them, and says that it is alive while it does."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from outrider.runtime.api_client import JobInfo
from outrider.runtime.errors import ConflictError, OutriderError, UnavailableError
from outrider.runtime.trust import PrivateKey
from outrider.trainer.fleet import Fleet
from outrider.trainer.pipeline import Outcome, Workplace, retrain
from outrider.trainer.progress import Progress, silent

log = logging.getLogger(__name__)

HEARTBEAT_S = 15.0
_DETAIL_CHARS = 2000


class Worker:
    """Does the retrain Jobs of some models.

    `recipes` maps model names to recipes (a path, or a bundled one's name). `publisher_key` signs what is published.
    `workdir` keeps the state of Jobs: a worker that is started anew on it goes on where it was stopped.
    """

    def __init__(
        self,
        client: Fleet,
        recipes: Mapping[str, Path | str],
        publisher_key: PrivateKey,
        workdir: Path | str,
        *,
        poll_s: float = 5.0,
        name: str | None = None,
        progress: Progress = silent,
    ) -> None:
        self.name = name or f"{socket.gethostname()}-{os.getpid()}"
        self._fleet = client
        self._recipes = dict(recipes)
        self._work = Workplace(fleet=client, publisher=publisher_key, folder=Path(workdir))
        self._poll_s = poll_s
        self._progress = progress
        self._pending: JobInfo | None = None

    def run_forever(self, stop: threading.Event | None = None) -> None:
        """Poll for Jobs until `stop` is set; a fleet that is away is waited for."""
        stopped = stop or threading.Event()
        while not stopped.is_set():
            try:
                job = self.run_once()
            except UnavailableError as e:
                log.warning("%s; trying again in %g s", e, self._poll_s)
                job = None
            if job is None:
                stopped.wait(self._poll_s)

    def run_once(self) -> JobInfo | None:
        """Do one Job; return it as it ended, or None where there was none.

        What goes wrong in the Job is written into it and ends it. Raises UnavailableError where the fleet is away,
        before or in the middle; the Job is then gone on with at the next call.
        """
        job = self._pending or self._claim()
        if job is None:
            return None
        self._pending = job
        log.info("job %d: retrain %s", job.id, job.model)
        try:
            ended = self._do(job)
        except ConflictError as e:
            log.warning("job %d was given to another worker: %s", job.id, e)
            ended = None
        self._pending = None
        return ended

    def _claim(self) -> JobInfo | None:
        for model in self._recipes:
            job = self._fleet.claim_job(self.name, model)
            if job is not None:
                return job
        return None

    def _do(self, job: JobInfo) -> JobInfo:
        with Heartbeat(self._fleet, job.id, self._progress) as heart:
            try:
                outcome: Outcome | None = retrain(job, self._recipes[job.model], self._work, heart.progress)
                detail = "" if outcome is None else outcome.detail
            except OutriderError as e:
                if heart.lost is not None or (isinstance(e, UnavailableError) and not self._fleet.healthy()):
                    raise
                log.error("job %d failed: %s", job.id, e)
                outcome, detail = None, str(e)
        if outcome is None:
            return self._fleet.finish_job(job.id, "FAILED", detail[:_DETAIL_CHARS])
        return self._fleet.finish_job(
            job.id, "DONE", detail[:_DETAIL_CHARS], run_id=outcome.run_id, release=outcome.release
        )


class Heartbeat:
    """Prolongs a Job's lease from a thread of its own; as a context manager around the work.

    `progress` tells the fleet each new stage at once, and stops the work with ConflictError once the Job is lost.
    """

    def __init__(self, fleet: Fleet, job: int, progress: Progress, *, interval_s: float = HEARTBEAT_S) -> None:
        self.lost: ConflictError | None = None
        self._fleet = fleet
        self._job = job
        self._tell = progress
        self._interval_s = interval_s
        self._stage, self._detail = "claimed", ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heartbeat-{job}", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def progress(self, stage: str, detail: str) -> None:
        """Note where the work is. Raises ConflictError where another worker has the Job now."""
        self._tell(stage, detail)
        changed = stage != self._stage
        self._stage, self._detail = stage, detail
        if changed:
            self._beat()
        if self.lost is not None:
            raise ConflictError(self.lost.message, hint=self.lost.hint)

    def _run(self) -> None:
        while not self._done.wait(self._interval_s):
            self._beat()

    def _beat(self) -> None:
        try:
            self._fleet.heartbeat_job(self._job, self._stage, self._detail[:_DETAIL_CHARS])
        except ConflictError as e:
            self.lost = e
        except OutriderError as e:  # the fleet may come back before the lease is over
            log.warning("job %d: no heartbeat: %s", self._job, e)
