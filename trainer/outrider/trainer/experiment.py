"""Runs: every training, with its parameters, data, code, metrics and outcome, in one SQLite file."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from outrider.runtime import __version__
from outrider.runtime.errors import NotFoundError, StorageError
from outrider.trainer.metrics import Metrics

RunState = Literal["running", "done", "failed", "interrupted"]
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, recipe TEXT NOT NULL, state TEXT NOT NULL,
    started REAL NOT NULL, finished REAL, run TEXT NOT NULL
)
"""


class DataInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The rows that a run used: their SHA-256, number, and the times of the oldest and newest one.

    `until` is the cutoff that was asked for; `parts` are the rows in each part of the split.
    """

    digest: str
    rows: int
    first: float
    last: float
    until: float | None
    parts: dict[str, int]


class RunMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Figures on the validation rows, which early stopping saw, and on the test rows, which nothing saw."""

    valid: Metrics
    test: Metrics


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One execution of a recipe. Times are seconds since the epoch, UTC; `seconds` is how long it took."""

    id: str
    recipe: str
    recipe_sha256: str
    state: RunState
    started: float
    code_version: str
    parameters: dict[str, str]
    finished: float | None = None
    seconds: float | None = None
    data: DataInfo | None = None
    rounds: int | None = None
    metrics: RunMetrics | None = None
    model_dir: str | None = None
    error: str | None = None


class RunStore:
    """The Runs of one SQLite file, which is made where it is missing. Raises StorageError."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def save(self, run: Run) -> None:
        """Insert or replace a Run."""
        row = (run.id, run.recipe, run.state, run.started, run.finished, msgspec.json.encode(run).decode())
        with self._connect() as connection:
            connection.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?)", row)

    def get(self, run_id: str) -> Run:
        """One Run. Raises NotFoundError."""
        with self._connect() as connection:
            row = connection.execute("SELECT run FROM runs WHERE id = ?", (run_id,)).fetchone()
        if row is None:
            raise NotFoundError(f"there is no run {run_id} in {self.path}")
        return msgspec.json.decode(row[0], type=Run)

    def list(self, recipe: str | None = None) -> list[Run]:
        """All Runs, newest first, of one recipe where it is named."""
        with self._connect() as connection:
            rows = connection.execute(
                "SELECT run FROM runs WHERE ?1 IS NULL OR recipe = ?1 ORDER BY started DESC, id DESC", (recipe,)
            ).fetchall()
        return [msgspec.json.decode(row[0], type=Run) for row in rows]

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self.path, timeout=30.0)) as connection, connection:
                connection.execute(_SCHEMA)
                yield connection
        except (sqlite3.Error, OSError) as e:
            raise StorageError(f"the runs in {self.path} cannot be used: {e}") from e


@contextlib.contextmanager
def recorded(store: RunStore, run: Run) -> Iterator[Recorder]:
    """Record a Run from start to end: done, failed with its error, or interrupted."""
    recorder = Recorder(store, run)
    store.save(run)
    try:
        yield recorder
    except KeyboardInterrupt:
        recorder.end("interrupted", "interrupted by Ctrl-C")
        raise
    except BaseException as e:
        recorder.end("failed", str(e) or type(e).__name__)
        raise
    recorder.end("done")


class Recorder:
    """The Run that is going on."""

    def __init__(self, store: RunStore, run: Run) -> None:
        self.run = run
        self._store = store
        self._begun = time.monotonic()

    def note(self, **fields: object) -> None:
        """Add what has become known."""
        self.run = msgspec.structs.replace(self.run, **fields)
        self._store.save(self.run)

    def end(self, state: RunState, error: str | None = None) -> None:
        """Record the outcome and the time it took."""
        self.note(state=state, error=error, finished=time.time(), seconds=round(time.monotonic() - self._begun, 3))


def new_run_id() -> str:
    """A run id that sorts by time: `20190501-120000-1f3a9c`."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def code_version() -> str:
    """The package's version, and the commit (with `.dirty`) where the package lies in a git checkout of its own."""
    here = Path(__file__).resolve().parent
    try:
        commit = _git(here, "rev-parse", "--short=12", "HEAD")
        tracked = _git(here, "ls-files", Path(__file__).name)
        if not commit or not tracked:
            return __version__
        dirty = ".dirty" if _git(here, "status", "--porcelain", "--untracked-files=no") else ""
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{commit}{dirty}"


def _git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True, text=True, timeout=10, check=False, env=environment,
    )  # fmt: skip
    return done.stdout.strip() if done.returncode == 0 else ""
