"""One run of the benchmark. Read `run` first; each line is a stage."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from benchmarks.shared.begin import Begin, Tell, peer_info
from benchmarks.trees.models import Case, Spec, quiet, train
from benchmarks.trees.peers import NotSupported, Order, Predict, peer
from benchmarks.trees.records import CaseInfo, Cell, Entry, Result
from benchmarks.trees.timing import race

from outrider.runtime.errors import UnavailableError

Save = Callable[[Result], None]

_CHECKED_ROWS = 4096
_CLOSE, _OUTLIERS = 1e-3, 0.01  # a rival's results: at most 1 % of the rows may be off by more than 0.001


@dataclass(frozen=True)
class Plan:
    """What to run. `limit_s` bounds one race in CPU time, `patience_s` the making of one rival's file."""

    specs: Sequence[Spec]
    peers: Sequence[str]
    batches: Sequence[int]
    limit_s: float
    patience_s: float
    memory: bool = True
    quick: bool = False

    def batches_of(self, spec: Spec) -> list[int]:
        """The random models leave out the largest batch, which tells what 1,024 rows tell."""
        return [batch for batch in self.batches if batch <= 1024 or not spec.seed]

    def patience_of(self, spec: Spec) -> float:
        """There are many random models, so they get less."""
        return min(self.patience_s, 20.0) if spec.seed else self.patience_s

    @property
    def races(self) -> int:
        """How many races there are."""
        return sum(len(self.batches_of(spec)) for spec in self.specs)


@dataclass
class _Found:
    """What a run has found so far: whole cases. `minutes`: what earlier runs took for theirs."""

    cases: list[CaseInfo] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    races: int = 0
    minutes: float = 0.0

    def add(self, other: _Found | Result) -> None:
        """Take another one's cases."""
        self.cases += other.cases
        self.entries += other.entries
        self.cells += other.cells
        self.minutes += other.minutes


def run(plan: Plan, tell: Tell, save: Save, earlier: Result | None = None) -> Result:
    """Train, load, race and measure all that the plan says; on Ctrl-C, give the cases that are over.

    After each case, what there is so far is saved. The cases of an earlier run are kept as they are.
    """
    quiet()
    found, begin = _Found(), Begin()
    if earlier is not None:
        found.add(earlier)
    known = {case.name for case in found.cases}
    try:
        for spec in plan.specs:
            if spec.name not in known:
                found.add(_run_case(spec, plan, lambda what, races: tell(what, found.races + races)))
                save(_result(plan, found, begin, interrupted=True))
            found.races += len(plan.batches_of(spec))
    except KeyboardInterrupt:
        return _result(plan, found, begin, interrupted=True)
    return _result(plan, found, begin, interrupted=False)


def _result(plan: Plan, found: _Found, begin: Begin, *, interrupted: bool) -> Result:
    return Result(
        quick=plan.quick,
        interrupted=interrupted,
        **begin.until_now(found.minutes),
        peers=tuple(peer_info(name, peer(name)) for name in plan.peers),
        cases=tuple(found.cases),
        entries=tuple(found.entries),
        cells=tuple(found.cells),
    )


def _run_case(spec: Spec, plan: Plan, tell: Tell) -> _Found:
    """One model: train it, let each peer load it, race them, and look at the memory of those that took part."""
    found = _Found()
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as name:
        folder = Path(name)
        tell(f"{spec.name}: training", 0)
        try:
            case = train(spec, folder)
        except UnavailableError as e:
            found.cases.append(CaseInfo(name=spec.name, shape=spec.shape, description=spec.description, skipped=str(e)))
            return found
        found.cases.append(CaseInfo(name=spec.name, shape=spec.shape, description=case.description))
        runners: dict[str, Predict] = {}
        for peer_name in plan.peers:
            tell(f"{spec.name}: {peer_name} loads it", 0)
            entry, predict = _enter(peer_name, case, folder, plan)
            found.entries.append(entry)
            if predict is not None:
                runners[peer_name] = predict
        for batch in plan.batches_of(spec):
            tell(f"{spec.name}: {len(runners)} race at batch {batch}", found.races)
            found.cells += _race(case, runners, batch, plan)
            found.races += 1
    return found


def _enter(name: str, case: Case, folder: Path, plan: Plan) -> tuple[Entry, Predict | None]:
    """Let one peer make its file and load it, check its results, and measure its memory."""
    rival = peer(name)
    if rival.version() is None:
        return Entry(case=case.spec.name, peer=name, status="absent", detail="not installed"), None
    own = folder / name
    own.mkdir()
    start = time.perf_counter()
    try:
        path = rival.export(Order(case, own, plan.patience_of(case.spec)))
        seconds = time.perf_counter() - start
        predict = rival.open(path)
        error, close = compare(predict(case.rows[:_CHECKED_ROWS]), case.reference(case.rows[:_CHECKED_ROWS]))
    except NotSupported as e:
        return Entry(case=case.spec.name, peer=name, status="unsupported", detail=str(e)), None
    except Exception as e:  # of any library: what it says is the outcome
        text = f"{type(e).__name__}: {(str(e).strip().splitlines() or [''])[0]}"
        return Entry(case=case.spec.name, peer=name, status="unsupported", detail=text[:200]), None
    entry = Entry(
        case=case.spec.name,
        peer=name,
        status="own forest" if not rival.same_model else "measured" if close else "differs",
        detail=rival.variant(),
        file_bytes=path.stat().st_size,
        artifact_bytes=rival.artifact_bytes,
        compile_s=round(rival.compile_s or seconds, 2),
        compile_peak_mb=None if rival.compile_peak_mb is None else round(rival.compile_peak_mb, 1),
        error=error,
    )
    return (_with_memory(entry, path, case, own) if plan.memory and not case.spec.seed else entry), predict


def compare(found: Any, wanted: Any) -> tuple[float, bool]:
    """The largest difference of two libraries' results, and whether almost all rows agree.

    Either may give the probability of the second class only, or of both.
    """
    a, b = (np.asarray(values, np.float64).reshape(len(values), -1) for values in (found, wanted))
    if a.shape[1] != b.shape[1]:
        a, b = a[:, -1:], b[:, -1:]
    error = np.abs(a - b).max(axis=1)
    return float(error.max()), bool(np.mean(~(error <= _CLOSE)) <= _OUTLIERS)


def _with_memory(entry: Entry, path: Path, case: Case, folder: Path) -> Entry:
    """The entry with the memory that a fresh process takes to import, load and predict one row."""
    row = folder / "row.npy"
    np.save(row, case.rows[:1])
    command = [sys.executable, "-m", "benchmarks.trees.fresh", "memory", entry.peer, str(path), str(row)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return entry
    told = json.loads(done.stdout.splitlines()[-1])
    return msgspec.structs.replace(entry, import_mb=round(told["import_mb"], 1), load_mb=round(told["load_mb"], 1))


def _race(case: Case, runners: dict[str, Predict], batch: int, plan: Plan) -> list[Cell]:
    timings = race(runners, case.rows, batch, limit_s=plan.limit_s)
    return [
        Cell(
            case=case.spec.name,
            peer=name,
            batch=batch,
            ns_min=round(timing.ns_min, 1),
            ns_median=round(timing.ns_median, 1),
            rounds=timing.rounds,
        )
        for name, timing in timings.items()
    ]
