"""Building candidates and verifying what came out: nothing is shipped that was not compared with the source.

An artifact runs on this machine where it can, one for another architecture under QEMU, and where there is none, a build
of the same sources for this machine is checked in its place. A WebAssembly artifact runs wherever its engine does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from typing import Any

from outrider.compiler.backends import BACKENDS, OWN, Backend, Built, Candidate, Times
from outrider.compiler.cache import Cache
from outrider.compiler.goals import Facts, check_goal
from outrider.compiler.measure import CROSSOVERS, Run, compare
from outrider.compiler.model import Array
from outrider.compiler.task import Made, Task
from outrider.compiler.verify import check_parity
from outrider.compiler.workshop import Workshop, inside
from outrider.runtime.admission import admissible, need_of
from outrider.runtime.bundle import Measurement
from outrider.runtime.engines import available, open_engine
from outrider.runtime.engines.base import Engine
from outrider.runtime.errors import (
    BadBundleError,
    BadDataError,
    BadInputError,
    EngineFault,
    OutriderError,
    ParityError,
    ToolchainError,
    UnsupportedError,
    UsageError,
)
from outrider.runtime.target import Refusal, refuse

_LEAST_S = 60.0  # for a build, whatever is left of the budget
_ROUNDS = 5  # of the brief measurements between which candidates are built
_SIZES = {"row": (1, *CROSSOVERS), "batch": (*CROSSOVERS, 1024), None: (1, *CROSSOVERS, 1024)}


@dataclass(frozen=True)
class OutOfTime:
    """A candidate that the search had no time for."""

    budget_s: float

    def __str__(self) -> str:
        return f"not tried: the time budget of {self.budget_s:g} s was used up"


@dataclass(frozen=True)
class Left:
    """A candidate that cannot be shipped, and why."""

    candidate: Candidate
    why: Refusal | OutOfTime | OutriderError


class Workroom:
    """Where a search works: its task, what earlier ones made, its workbenches, and what is closed at its end."""

    def __init__(self, task: Task, cache: Cache, stack: ExitStack) -> None:
        self.task, self.cache, self.stack = task, cache, stack
        self.benches: list[Bench] = []
        self.workshop = stack.enter_context(Workshop())


class Bench:
    """The workbench of one backend: what it built and measured, and what it had to leave, by candidate id."""

    def __init__(self, room: Workroom, name: str, maker: Backend) -> None:
        self._room, self._task, self._name, self._maker = room, room.task, name, maker
        room.benches.append(self)
        self.made: dict[str, Made] = {}
        self.left: dict[str, Left] = {}
        self.measured: dict[str, dict[int, Measurement]] = {}

    def build(self, candidates: Sequence[Candidate]) -> float:
        """Those that were not tried yet; the longest build, seconds, of those that are right."""
        seconds = 0.0
        for candidate in candidates:
            if candidate.id in self.made or candidate.id in self.left:
                continue
            try:
                made: Made | Refusal | OutOfTime | OutriderError = self._make(candidate)
            except (ParityError, ToolchainError, EngineFault, UnsupportedError, BadDataError, BadBundleError) as e:
                made = e
            if isinstance(made, Made):
                self.made[candidate.id] = made
                seconds = max(seconds, made.seconds)
            else:
                self.left[candidate.id] = Left(candidate, made)
        return seconds

    def tune(self, backend: str, function: str, *, seconds: float) -> None:
        """In a process of its own; what cannot be tuned is built without. Records are kept for later compiles."""
        order = self._task.order
        self._task.progress(f"tuning {backend}")
        try:
            records: bytes = self._room.workshop.call(function, order.portable(), seconds=seconds)
        except (ToolchainError, UnsupportedError) as e:
            self._task.progress(f"{backend} cannot be tuned: {e}")
            return
        order.tuning[backend] = records
        self._room.cache.keep_tuning(backend, records)

    def misses(self, candidate: Candidate) -> tuple[str, ...] | None:
        """The goals on quality that it misses; None for one that was not built."""
        made = self.made.get(candidate.id)
        if made is None:
            return None
        records = [check_goal(goal, Facts(quality=made.quality)) for goal in self._task.goals if goal.on_quality]
        return tuple(record.text for record in records if record.met is False)

    def _make(self, candidate: Candidate) -> Made | Refusal | OutOfTime:
        if self._task.seconds_left < 0 and any(bench.ships() for bench in self._room.benches):
            return OutOfTime(self._task.limits.budget_s)
        return make(self._room, self._name, self._maker, candidate)

    def mend(self) -> None:
        """Where artifacts in the source's own precision are not close enough: add what does as the source does.

        Without it none of them is shipped, since there may be machines that run just those that are wrong.
        """
        lefts = [left for left in self.left.values() if left.candidate.precision in OWN]
        failed = [left.why for left in lefts if isinstance(left.why, ParityError)]
        if not failed:
            return
        candidate = self._maker.faithful(self._task.order)
        if candidate is not None:
            self.build([candidate])
            if candidate.id in self.made:
                return
        for key, made in list(self.made.items()):
            if made.candidate.precision in OWN:
                self.left[key] = Left(made.candidate, failed[0])
                del self.made[key]

    def ships(self) -> bool:
        """Whether anything was built that is no mere part."""
        return any(made.candidate.part is None for made in self.made.values())

    def times(self) -> Times:
        """Each at the batch sizes of its role."""
        self._task.progress("measuring")
        runs = {key: shortest_run(self._task, made.engine) for key, made in self.made.items()}
        sizes = {key: _SIZES[made.candidate.part] for key, made in self.made.items()}
        self.measured = compare(runs, self._task.load, sizes, rounds=_ROUNDS)
        measured = self.measured.items()
        return {key: {batch: times.ns_per_row_min for batch, times in found.items()} for key, found in measured}


def make(room: Workroom, name: str, maker: Backend, candidate: Candidate) -> Made | Refusal:
    """Build, open and verify; why not, where neither the artifact nor a twin of it runs on this machine.

    An artifact for another architecture runs under emulation; where the emulator is missing or itself fails, its twin
    for this machine is verified. Raises ParityError, ToolchainError, EngineFault, UnsupportedError.
    """
    from outrider.targets.emulate import EmulatedEngine

    task = room.task
    task.progress(f"building {candidate.id}")
    begun = time.monotonic()
    built, signature = _build(room, name, maker, candidate), task.model.signature
    seconds = time.monotonic() - begun
    foreign = task.target.arch != task.host.arch

    def verified(engine: Engine, how: str, *, runs_here: bool = False) -> Made:
        room.stack.enter_context(closing(engine))
        task.progress(f"verifying {candidate.id}")
        parity = check_parity(
            task.model, engine, task.truth, task.samples, candidate=candidate.id, precision=candidate.precision
        )
        return Made(built, parity, engine, runs_here, how, seconds, task.quality(engine.run))

    # Where the engine of this machine's own artifacts is missing, opening one says so.
    refusal = admissible(need_of(built.entry), task.host, engines=lambda kind: not foreign or available(kind))
    if refusal is None:
        engine = open_engine(built.entry, built.data, signature, task.limits.threads)
        return verified(engine, f"here, by {built.entry.package}", runs_here=True)
    if not foreign:
        return refusal
    if built.entry.format == "native":
        with suppress(ToolchainError):
            emulated = EmulatedEngine(built.entry, built.data, task.target, signature)
            return verified(emulated, f"under {emulated.binding}")
    twin = maker.twin(task.order, candidate, task.host)
    if twin is None or refuse(twin.entry.needs, task.host) is not None:
        return refusal
    return verified(open_engine(twin.entry, twin.data, signature), "on the same sources built for this machine")


def _build(room: Workroom, name: str, maker: Backend, candidate: Candidate) -> Built:
    """From the cache, here, or in a process of its own, where a foreign compiler harms one candidate only."""
    task = room.task
    known = room.cache.artifact(task.order, candidate)
    if known is not None:
        return known
    built = _build_anew(room, name, maker, candidate)
    room.cache.keep_artifact(task.order, built)
    return built


def _build_anew(room: Workroom, name: str, maker: Backend, candidate: Candidate) -> Built:
    task = room.task
    if not maker.isolated or inside():
        return maker.build(task.order, candidate)
    order = task.order.portable()
    if candidate.precision in OWN:
        order = replace(order, calibration=order.calibration[:1])
    seconds = max(_LEAST_S, task.seconds_left)
    try:
        built: Built = room.workshop.call(
            "outrider.compiler.backends:build_elsewhere", BACKENDS[name], order, candidate, seconds=seconds
        )
    except BadDataError:
        raise
    except (BadInputError, UsageError) as e:  # of the model in the terms of this backend, which others may take
        raise UnsupportedError(e.message, hint=e.hint) from e
    return built


def shortest_run(task: Task, engine: Engine) -> Run:
    """A run in the way that a session takes for the main output: for a model of one matrix, a function of its own."""
    signature = task.model.signature

    def unexpected(rows: Any) -> Array:
        raise AssertionError(f"the artifact's own function does not take rows of {rows.dtype} and shape {rows.shape}")

    function = engine.matrix_function(signature.predict, unexpected)
    name = signature.inputs[0].name
    return engine.run if function is None else lambda inputs: function(inputs[name])
