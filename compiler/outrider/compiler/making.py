"""Building candidates and verifying what came out: nothing is shipped that was not compared with the source.

An artifact runs on this machine where it can, one for another architecture under QEMU, and where there is none, a build
of the same sources for this machine is checked in its place. A WebAssembly artifact runs wherever its engine does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any

from outrider.compiler.backends import Backend, Candidate, Times
from outrider.compiler.measure import CROSSOVERS, Run, compare
from outrider.compiler.model import Array
from outrider.compiler.task import Made, Task
from outrider.compiler.verify import check_parity
from outrider.runtime.admission import admissible, need_of
from outrider.runtime.bundle import Measurement
from outrider.runtime.engines import available, open_engine
from outrider.runtime.engines.base import Engine
from outrider.runtime.errors import ParityError, ToolchainError, UnsupportedError
from outrider.runtime.target import Refusal, refuse

_ROUNDS = 5  # of the brief measurements between which candidates are built
_SIZES = {"row": (1, *CROSSOVERS), "batch": (*CROSSOVERS, 1024), None: (1, *CROSSOVERS, 1024)}


class Bench:
    """The workbench of one backend: what it built and measured, and what it had to leave, by candidate id."""

    def __init__(self, task: Task, maker: Backend, stack: ExitStack) -> None:
        self._task, self._maker, self._stack = task, maker, stack
        self.made: dict[str, Made] = {}
        self.left: dict[str, tuple[Candidate, Refusal | ParityError]] = {}
        self.measured: dict[str, dict[int, Measurement]] = {}

    def build(self, candidates: Sequence[Candidate]) -> float:
        """Those that were not tried yet; the longest build, seconds, of those that are right."""
        seconds = 0.0
        for candidate in candidates:
            if candidate.id in self.made or candidate.id in self.left:
                continue
            try:
                made: Made | Refusal | ParityError = make(self._task, self._maker, candidate, self._stack)
            except ParityError as e:
                made = e
            if isinstance(made, Made):
                self.made[candidate.id] = made
                seconds = max(seconds, made.seconds)
            else:
                self.left[candidate.id] = candidate, made
        return seconds

    def build_faithful(self) -> None:
        """What does as the source does, step by step, where others do not come close enough.

        Raises ParityError where there is no such, or it disagrees, too.
        """
        failed = [e for _, e in self.left.values() if isinstance(e, ParityError)]
        candidate = self._maker.faithful(self._task.model, self._task.target)
        if candidate is not None:
            self.build([candidate])
        if failed and (candidate is None or candidate.id not in self.made):
            raise failed[0]

    def check(self) -> None:
        """Raises ParityError or UnsupportedError where nothing is left that could be shipped."""
        if not self._ships():
            self.build_faithful()
        if not self._ships():
            reasons = "; ".join(f"{candidate.id}: {why}" for candidate, why in self.left.values())
            raise UnsupportedError(f"nothing runs on {self._task.target.name}", hint=reasons)

    def _ships(self) -> bool:
        """Whether anything was built that is no mere part."""
        return any(made.candidate.part is None for made in self.made.values())

    def times(self) -> Times:
        """Each at the batch sizes of its role."""
        self._task.progress("measuring")
        runs = {key: shortest_run(self._task, made.engine) for key, made in self.made.items()}
        sizes = {key: _SIZES[made.candidate.part] for key, made in self.made.items()}
        self.measured = compare(runs, self._task.truth.inputs, sizes, rounds=_ROUNDS)
        measured = self.measured.items()
        return {key: {batch: times.ns_per_row_min for batch, times in found.items()} for key, found in measured}


def make(task: Task, maker: Backend, candidate: Candidate, stack: ExitStack) -> Made | Refusal:
    """Build, open and verify; why not, where neither the artifact nor a twin of it runs on this machine.

    An artifact for another architecture runs under emulation; where the emulator is missing or itself fails, its twin
    for this machine is verified. Raises ParityError, ToolchainError.
    """
    from outrider.targets.emulate import EmulatedEngine

    task.progress(f"building {candidate.id}")
    begun = time.monotonic()
    built, signature = maker.build(task.model, candidate, task.target), task.model.signature
    seconds = time.monotonic() - begun
    foreign = task.target.arch != task.host.arch

    def verified(engine: Engine, how: str, *, runs_here: bool = False) -> Made:
        stack.enter_context(closing(engine))
        task.progress(f"verifying {candidate.id}")
        parity = check_parity(task.model, engine, task.truth, task.samples, candidate=candidate.id)
        return Made(built, parity, engine, runs_here, how, seconds)

    # Where the engine of this machine's own artifacts is missing, opening one says so.
    refusal = admissible(need_of(built.entry), task.host, engines=lambda kind: not foreign or available(kind))
    if refusal is None:
        engine = open_engine(built.entry, built.data, signature)
        return verified(engine, f"here, by {built.entry.package}", runs_here=True)
    if not foreign:
        return refusal
    if built.entry.format == "native":
        with suppress(ToolchainError):
            emulated = EmulatedEngine(built.entry, built.data, task.target, signature)
            return verified(emulated, f"under {emulated.binding}")
    twin = maker.twin(task.model, candidate, task.host)
    if twin is None or refuse(twin.entry.needs, task.host) is not None:
        return refusal
    return verified(open_engine(twin.entry, twin.data, signature), "on the same sources built for this machine")


def shortest_run(task: Task, engine: Engine) -> Run:
    """A run in the way that a session takes for the main output: for a model of one matrix, a function of its own."""
    signature = task.model.signature

    def unexpected(rows: Any) -> Array:
        raise AssertionError(f"the artifact's own function does not take rows of {rows.dtype} and shape {rows.shape}")

    function = engine.matrix_function(signature.predict, unexpected)
    name = signature.inputs[0].name
    return engine.run if function is None else lambda inputs: function(inputs[name])
