"""Streams rows with live progress, and tells what the fleet makes of them."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from outrider.runtime.api_client import FleetClient
from outrider.runtime.api_client.types import JobInfo, RolloutInfo
from outrider.trainer.data.table import Table
from outrider.trainer.demo.stage import Stage
from outrider.trainer.demo.stream import Streamer, Tally

ROWS_PER_S = 900.0


def stream(
    stage: Stage, rows: Table, streamer: Streamer, name: str, *, until: Callable[[], bool] = lambda: False
) -> dict[str, Tally]:
    """Send rows at a steady pace with a progress bar, until they end or `until` holds; tallies by bundle version."""
    tallies: dict[str, Tally] = {}
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stage.console, transient=True) as progress:
        task = progress.add_task(name, total=len(rows))
        due = time.monotonic()
        for start in range(0, len(rows), Streamer.BATCH):
            streamer.send(rows.take(slice(start, start + Streamer.BATCH)), tallies)
            stage.children.check()
            progress.update(task, advance=Streamer.BATCH, description=f"{name}, accuracy {total(tallies).accuracy:.1%}")
            if until():
                break
            due = max(due + Streamer.BATCH / ROWS_PER_S, time.monotonic() - 1.0)
            time.sleep(max(0.0, due - time.monotonic()))
        streamer.flush()
    return tallies


class Watch:
    """Watches the fleet while rows are streamed, and tells each piece of news once."""

    POLL_S = 0.5

    def __init__(self, fleet: FleetClient, say: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._say = say
        self._told: set[str] = set()
        self._asked = 0.0
        self._closed = False

    def closed(self) -> bool:
        """Whether a job's release runs on all devices. Asks the fleet at most every `POLL_S` seconds."""
        if not self._closed and time.monotonic() - self._asked >= self.POLL_S:
            self._asked = time.monotonic()
            self._closed = self._look()
        return self._closed

    def _look(self) -> bool:
        for event in self._fleet.drift_events():
            if event.scope == "fleet":
                self._tell(
                    f"drift event: {event.feature}, |F - F0| up to {event.effect:.2f}, e-value {event.e_value:.3g}"
                )
        for job in self._fleet.jobs():
            self._tell(_describe(job))
        done = False
        for rollout in self._fleet.rollouts():
            if rollout.job is not None:
                self._tell(f"release {rollout.name}:{rollout.version} by job {rollout.job}: {counts(rollout)}")
                done = done or rollout.state == "DONE"
        return done

    def _tell(self, news: str) -> None:
        if news not in self._told:
            self._told.add(news)
            self._say(news)


def total(tallies: dict[str, Tally]) -> Tally:
    """The sum over all bundle versions."""
    return Tally(rows=sum(t.rows for t in tallies.values()), right=sum(t.right for t in tallies.values()))


def _describe(job: JobInfo) -> str:
    where = f", {job.stage}" if job.stage else ""
    detail = f": {job.detail}" if job.detail and job.state in ("DONE", "FAILED") else ""
    return f"job {job.id} ({job.reason.get('kind')}): {job.state.lower()}{where}{detail}"


def counts(rollout: RolloutInfo) -> str:
    """A rollout's state and its deployments by state, in words."""
    states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(rollout.counts.items()))
    return f"{rollout.state.lower()} ({states or 'no device yet'})"
