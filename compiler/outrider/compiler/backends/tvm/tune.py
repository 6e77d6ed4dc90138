"""Tuning: schedules are built and timed in this process, the most promising function first, within a budget.

A function's choices are swept one size at a time, starting from the rule's favourites and keeping what won; then
combinations are drawn at random. The next trial goes to the function in which a run spends the most time for each trial
that it already had, so functions that matter get more. Functions of equal loops are one function.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from outrider.compiler.backends.tvm import schedules
from outrider.compiler.backends.tvm.lower import Loops, loops
from outrider.compiler.backends.tvm.machine import Machine
from outrider.compiler.backends.tvm.records import Found, Records, key_of
from outrider.compiler.backends.tvm.schedules import Choice, Shape

if TYPE_CHECKING:
    import tvm

_BETTER = 0.99  # of the best time so far: what is less faster than this is noise
_SWEPT = ("tile", "border", "band", "panel", "k")  # the order of a sweep: what matters most comes first
_SWEEPS = 2
_DRAWS = 64  # combinations drawn after the sweeps
_BLOCK_S, _BLOCKS = 0.001, 5  # a time is the least of so many blocks of so many seconds at least


@dataclass(frozen=True)
class Budget:
    """When tuning ends: after so many seconds or trials, whichever is first. A trial that runs is finished."""

    seconds: float = 60.0
    trials: int = 10_000


@dataclass(frozen=True)
class Step:
    """What one trial found: the function, its least time so far, and the sum over all functions of a run so far.

    Times are nanoseconds of CPU time; `fraction` of the budget is used up.
    """

    name: str
    nanoseconds: float
    run_nanoseconds: float
    trials: int
    fraction: float


@dataclass(frozen=True)
class Spent:
    """Where a run spends its time: a function, how often it is called, and nanoseconds and FLOPs of one call."""

    name: str
    calls: int
    nanoseconds: float
    flops: float
    choice: Choice


@dataclass(frozen=True)
class Tuned:
    """Records, old and new; where the time of a run goes, the most first; and whether Ctrl-C ended the tuning."""

    records: Records
    spent: tuple[Spent, ...]
    trials: int
    interrupted: bool


@dataclass
class _Task:
    loops: Loops
    key: str
    shape: Shape
    proposals: Iterator[Choice]
    calls: int
    tried: set[Choice] = field(default_factory=set)
    best: Found | None = None
    done: bool = False

    @property
    def promise(self) -> float:
        """Nanoseconds of a run for each trial; what was never tried comes first, by its work."""
        if self.best is None:
            return 1e18 + self.loops.flops * self.calls
        return self.best.nanoseconds * self.calls / (len(self.tried) + 1)


def tune(
    mod: tvm.IRModule,
    machine: Machine,
    records: Records | None = None,
    budget: Budget | None = None,
    progress: Callable[[Step], None] | None = None,
) -> Tuned:
    """Find schedules for the functions of a lowered module, on this machine, which must be able to run its code.

    What is on record is not tried again. Ctrl-C ends it, and what was found stays.
    """
    records, budget = records or Records(), budget or Budget()
    begun = time.monotonic()
    tasks = _tasks(mod, machine, records)
    found: dict[str, Found] = {}
    trials, interrupted = 0, False
    try:
        while trials < budget.trials and time.monotonic() - begun < budget.seconds:
            open_tasks = [task for task in tasks if not task.done]
            if not open_tasks:
                break
            task = max(open_tasks, key=lambda one: one.promise)
            choice = _next(task)
            if choice is None:
                continue
            trials += 1
            _try(task, choice, machine)
            if task.best is not None:
                found[task.key] = task.best
                if progress is not None:
                    used = max(trials / budget.trials, (time.monotonic() - begun) / budget.seconds)
                    progress(Step(task.loops.name, task.best.nanoseconds, _total(tasks), trials, min(used, 1.0)))
    except KeyboardInterrupt:
        interrupted = True
    return Tuned(records.merged(found), _spent(tasks), trials, interrupted)


def measure(function: Any, machine: Machine) -> float:
    """The least CPU time of a call, nanoseconds, on random data. Raises what TVM raises where it cannot be built."""
    import tvm

    built = tvm.compile(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), machine.target())
    call = built["main"]
    rng = np.random.default_rng(0)
    arguments = [tvm.runtime.tensor(_values(rng, one)) for one in function.params]
    call(*arguments)
    count = 1
    while True:
        seconds = _block(call, arguments, count)
        if seconds >= _BLOCK_S:
            break
        count *= 2 if seconds <= 0 else max(2, min(16, int(_BLOCK_S / seconds) + 1))
    return min(_block(call, arguments, count) for _ in range(_BLOCKS)) / count * 1e9


def _block(call: Any, arguments: list[Any], count: int) -> float:
    begun = time.process_time()
    for _ in range(count):
        call(*arguments)
    return time.process_time() - begun


def _values(rng: np.random.Generator, parameter: Any) -> Any:
    shape = [int(size) for size in parameter.shape]
    return (rng.random(shape) * 2).astype(str(parameter.dtype))


def _tasks(mod: tvm.IRModule, machine: Machine, records: Records) -> list[_Task]:
    """What there is to tune, functions of equal loops together; those on record are done."""
    tasks: dict[str, _Task] = {}
    for one in loops(mod):
        shape = schedules.shape_of(one.function)
        if shape is None or not one.flops or not one.calls:
            continue
        key = key_of(one.function, machine)
        if key in tasks:
            tasks[key].calls += one.calls
            continue
        known = records.found.get(key)
        task = _Task(one, key, shape, iter(()), one.calls, best=known, done=known is not None)
        task.proposals = _proposals(task, machine)
        tasks[key] = task
    return list(tasks.values())


def _proposals(task: _Task, machine: Machine) -> Iterator[Choice]:
    """Choices to try, which depend on what won so far."""
    options = schedules.choices(task.shape, machine)
    best = {name: values[0] for name, values in options.items()}
    yield schedules.combine(best)
    for _ in range(_SWEEPS):
        start = dict(best)
        for name in _SWEPT:
            for value in options[name]:
                changed = {**best, name: value}
                choice = schedules.combine(changed)
                yield choice
                if task.best is not None and task.best.choice == choice:
                    best = changed
        if best == start:
            break
    rng = random.Random(task.key)  # noqa: S311 (a search, not a secret)
    for _ in range(_DRAWS):
        yield schedules.combine({name: rng.choice(values) for name, values in options.items()})


def _next(task: _Task) -> Choice | None:
    """The next choice that was not tried; None, and the task is done, where there is none."""
    for choice in task.proposals:
        if choice not in task.tried:
            task.tried.add(choice)
            return choice
    task.done = True
    return None


def _try(task: _Task, choice: Choice, machine: Machine) -> None:
    """Build and time one choice; one that TVM cannot build is passed over."""
    scheduled = schedules.apply(task.loops.function, task.shape, choice, machine)
    try:
        nanoseconds = measure(scheduled, machine)
    except Exception:  # a pass of TVM's gave up on this one schedule
        return
    if task.best is None or nanoseconds < task.best.nanoseconds * _BETTER:
        task.best = Found(choice, nanoseconds)


def _total(tasks: list[_Task]) -> float:
    return sum(task.best.nanoseconds * task.calls for task in tasks if task.best is not None)


def _spent(tasks: list[_Task]) -> tuple[Spent, ...]:
    spent = [
        Spent(task.loops.name, task.calls, task.best.nanoseconds, task.loops.flops, task.best.choice)
        for task in tasks
        if task.best is not None
    ]
    return tuple(sorted(spent, key=lambda one: -one.nanoseconds * one.calls))
