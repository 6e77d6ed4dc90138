"""Which kernels an artifact holds: a plan is a kernel for rows, one for batches and an instruction-set level.

For the present machine plans compete by measurement, in three rounds, so that the number of builds grows with the
number of kernels and not with that of pairs:

1. `favourites`: each kernel alone, with its favourite options. A kernel that serves rows is measured at 1 row, one
   that serves batches at 64 and 1024, and both at the sizes between, where they meet.
2. `further`: the other options of the kernel that is the best at rows, and of the one that is the best at batches.
3. `further` again: these two together, with the crossover where the batch kernel overtakes. Where one kernel is the
   best at both, it stays alone, since it shares its tables.

The search (`outrider.compiler.search`) then measures what can be shipped as a whole, and chooses. For any other
target, `rule` decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.kernels import BASELINE, ISA_LEVELS, KERNELS, IsaLevel, Kernel, Role
from outrider.runtime.target import Target

CROSSOVERS = (8, 16, 32, 64)  # rows
CROSSOVER = 32  # by the rule: batch kernels work on 64 rows at a time, and overtake single rows at 25 to 40
MARGIN = 0.95  # another must take less than this share of the favourite's time, so that noise does not choose

_ROW_SIZES, _BATCH_SIZES = (1,), (64, 1024)
_LEVELS = list(ISA_LEVELS)

Kernels = Callable[[str], Kernel]


@dataclass(frozen=True)
class Part:
    """A kernel with its options, in the order in which the kernel names them."""

    kernel: str
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Plan:
    """What an artifact is made of: batches below `crossover` rows go to `row`, others to `batch`.

    Where they are the same, the crossover is 0. `isa` names the level that the artifact is compiled for.
    """

    row: Part
    batch: Part
    isa: str = BASELINE
    crossover: int = 0

    def options(self) -> dict[str, str]:
        """The plan as the options of a candidate; `read_plan` is the inverse."""
        level = {} if self.isa == BASELINE else {"isa": self.isa}
        if self.row == self.batch:
            return {"kernel": self.row.kernel, **dict(self.row.options), **level}
        return {
            "row": self.row.kernel,
            **{f"row.{key}": value for key, value in self.row.options},
            "batch": self.batch.kernel,
            **{f"batch.{key}": value for key, value in self.batch.options},
            "crossover": str(self.crossover),
            **level,
        }


Times = Mapping[Plan, Mapping[int, float]]  # ns a row by batch size, of kernels alone


def read_plan(options: Mapping[str, str]) -> Plan | None:
    """The plan that the options of a candidate describe; None where they describe none. No kernel named: K2."""
    isa = options.get("isa", BASELINE)
    if "row" not in options:
        own = tuple((key, value) for key, value in options.items() if key not in ("kernel", "isa"))
        part = Part(options.get("kernel", "k2"), own)
        return Plan(part, part, isa)
    if "batch" not in options or not options.get("crossover", "").isdecimal():
        return None
    row, batch = (Part(options[role], _under(role, options)) for role in ("row", "batch"))
    return Plan(row, batch, isa, int(options["crossover"]))


def _under(role: str, options: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((key[len(role) + 1 :], value) for key, value in options.items() if key.startswith(f"{role}."))


def recognise(options: Mapping[str, str], forest: Forest, target: Target, kernels: Kernels) -> Plan | None:
    """The plan of these options, in any order; None unless this module could have made it for the architecture."""
    plan = read_plan(options)
    if plan is None or plan.isa not in ISA_LEVELS or ISA_LEVELS[plan.isa] not in _levels(target):
        return None
    row, batch = (_known(part, forest, target, kernels) for part in (plan.row, plan.batch))
    if row is None or batch is None:
        return None
    found = _pair(row, batch, kernels, plan.crossover if plan.crossover in CROSSOVERS else CROSSOVER)
    return found if (found.isa, found.crossover) == (plan.isa, plan.crossover) else None


def _known(part: Part, forest: Forest, target: Target, kernels: Kernels) -> Part | None:
    """The variant with these options, in the kernel's own order."""
    variants = _variants(part.kernel, forest, target, kernels) if part.kernel in KERNELS else []
    return next((variant for variant in variants if dict(variant.options) == dict(part.options)), None)


# ---- by the rule ----


def rule(forest: Forest, target: Target, kernels: Kernels) -> list[Plan]:
    """The selection rule: the plans to ship where nothing is measured, the most demanding level first.

    For each level of the target's architecture, and for each role: the first kernel of KERNELS that serves the role,
    needs no more than the level, and takes the forest, with its favourite options. A level that gains no kernel over
    the one below ships nothing. A device takes the first that it can run. Hence, each giving way to the next where it
    refuses the forest:

    | level | rows | batches |
    | --- | --- | --- |
    | x86-64-v4-vbmi | row, row-deep, k2 | shape, deep-batch, k2 |
    | x86-64-v3 | k2 | shape-avx2, k2 |
    | baseline, every architecture | k2 | k2 |
    """
    plans: dict[str, Plan] = {}
    for level in _levels(target):
        row, batch = (_first(role, level, forest, target, kernels) for role in ("row", "batch"))
        plan = _pair(row, batch, kernels, CROSSOVER)
        plans[plan.isa] = plan
    return list(reversed(plans.values()))


def _levels(target: Target) -> list[IsaLevel]:
    """The levels of the target's architecture, from the least to the most."""
    return [level for level in ISA_LEVELS.values() if level.arch in (None, target.arch)]


def _first(role: Role, level: IsaLevel, forest: Forest, target: Target, kernels: Kernels) -> Part:
    within = {one.name for one in _levels(target) if _LEVELS.index(one.name) <= _LEVELS.index(level.name)}
    for name in KERNELS:
        if role in kernels(name).serves and kernels(name).isa in within:
            for part in _variants(name, forest, target, kernels):
                return part
    raise AssertionError("the last kernel takes every forest")


def _variants(name: str, forest: Forest, target: Target, kernels: Kernels) -> list[Part]:
    """The kernel with each of its options, the favourite first; none where it refuses the forest."""
    if kernels(name).refuses(forest) is not None:
        return []
    return [Part(name, tuple(options.items())) for options in kernels(name).variants(forest, target)]


def _pair(row: Part, batch: Part, kernels: Kernels, crossover: int) -> Plan:
    """The plan of two parts, at the level that both can do with."""
    isa = max((kernels(part.kernel).isa for part in (row, batch)), key=_LEVELS.index)
    return Plan(row, batch, isa, 0 if row == batch else crossover)


# ---- by measurement ----


def solos(forest: Forest, target: Target, kernels: Kernels) -> list[Plan]:
    """Each variant of each kernel that this very target runs and that takes the forest, alone at every batch size."""
    return [
        _pair(part, part, kernels, 0)
        for name in KERNELS
        if _runs(kernels(name), target)
        for part in _variants(name, forest, target, kernels)
    ]


def _runs(kernel: Kernel, target: Target) -> bool:
    level = ISA_LEVELS[kernel.isa]
    return level.arch in (None, target.arch) and set(level.features) <= set(target.features)


def favourites(forest: Forest, target: Target, kernels: Kernels) -> list[Plan]:
    """The first variant of each kernel."""
    first: dict[str, Plan] = {}
    for plan in solos(forest, target, kernels):
        first.setdefault(plan.row.kernel, plan)
    return list(first.values())


def further(forest: Forest, target: Target, kernels: Kernels, times: Times) -> list[Plan]:
    """What to build next: other variants of the best kernels, then the best two together, then nothing."""
    row = _best("row", _ROW_SIZES, times, kernels)
    batch = _best("batch", _BATCH_SIZES, times, kernels)
    leading = {row.row.kernel, batch.row.kernel}
    untried = [p for p in solos(forest, target, kernels) if p.row.kernel in leading and p not in times]
    if untried:
        return untried
    if row.row.kernel == batch.row.kernel:
        return []
    return [_pair(row.row, batch.row, kernels, _crossover(times[row], times[batch]))]


def _best(role: Role, sizes: Sequence[int], times: Times, kernels: Kernels) -> Plan:
    """The fastest at these batch sizes; the first, which the rule prefers, unless another is clearly faster."""
    able = [plan for plan in times if role in kernels(plan.row.kernel).serves]
    sizes = [size for size in sizes if any(size in times[plan] for plan in able)]
    fastest = min(able, key=lambda plan: _cost(times[plan], sizes))
    clearly = MARGIN ** len(sizes) * _cost(times[able[0]], sizes)
    return fastest if _cost(times[fastest], sizes) < clearly else able[0]


def _cost(found: Mapping[int, float], sizes: Iterable[int]) -> float:
    """Product of the times, which orders as their geometric mean; infinite where a batch was too slow to measure."""
    return math.prod(found.get(size, math.inf) for size in sizes)


def _crossover(row: Mapping[int, float], batch: Mapping[int, float]) -> int:
    """The first size at which the batch kernel is the faster."""
    faster = (size for size in CROSSOVERS if batch.get(size, math.inf) <= row.get(size, math.inf))
    return next(faster, CROSSOVERS[-1])
