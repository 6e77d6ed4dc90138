"""Which kernels an artifact holds: a plan is a kernel for rows, one for batches and an instruction-set level.

What is worth building, the kernels' cost models say: of those that take the forest, the cheapest, and whatever is
reckoned to take up to WORTH times as long. For the present machine these compete by measurement, in rounds:

1. `first`: where one kernel is left in each role, the two together; else each alone. A kernel that serves rows is
   measured at 1 row, one that serves batches at 64 and 1024, and both at the sizes between, where they meet.
2. `together`: the best two, with the crossover where the batch kernel overtakes. Where one kernel is the best at both,
   it stays alone, since it shares its tables.
3. `variants`: the same with other options of either kernel, where builds are quick.

The search (`outrider.compiler.search`) then measures what can be shipped as a whole, and chooses. For any other
target, `rule` decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from outrider.compiler.measure import CROSSOVERS
from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.kernels import BASELINE, ISA_LEVELS, KERNELS, IsaLevel, Kernel, Role
from outrider.runtime.choice import MARGIN
from outrider.runtime.target import Target

WORTH = 1.25  # a kernel is measured up to this ratio to the cheapest: cost models are no better

_ROW_SIZES, _BATCH_SIZES = (1,), (64, 1024)
_LEAST_CROSSOVER, _MOST_CROSSOVER = 2, 64
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
    if row is None or batch is None or not (row == batch or _LEAST_CROSSOVER <= plan.crossover <= _MOST_CROSSOVER):
        return None
    found = _pair(row, batch, kernels, plan.crossover)
    return found if (found.isa, found.crossover) == (plan.isa, plan.crossover) else None


def _known(part: Part, forest: Forest, target: Target, kernels: Kernels) -> Part | None:
    """The variant with these options, in the kernel's own order."""
    variants = _variants(part.kernel, forest, target, kernels) if part.kernel in KERNELS else []
    return next((variant for variant in variants if dict(variant.options) == dict(part.options)), None)


# ---- by the cost models ----


def rule(forest: Forest, target: Target, kernels: Kernels) -> list[Plan]:
    """The selection rule: the plans to ship where nothing is measured, the most demanding level first.

    For each level of the target's architecture, and for each role: the kernel that is reckoned to be the fastest of
    those that serve the role, need no more than the level, and take the forest; with its favourite options. A level
    that gains no kernel over the one below ships nothing, nor does one below a level that needs nothing. A device takes
    the first that it can run.
    """
    plans: dict[str, Plan] = {}
    levels = _levels(target)
    for count in range(1, len(levels) + 1):
        within = {level.name for level in levels[:count]}
        row, batch = (_ranked(role, forest, target, kernels, within)[0] for role in ("row", "batch"))
        plan = _planned(row, batch, kernels)
        if not ISA_LEVELS[plan.isa].features:
            plans.clear()
        plans[plan.isa] = plan
    return list(reversed(plans.values()))


def first(forest: Forest, target: Target, kernels: Kernels) -> list[Plan]:
    """What is worth measuring on this very target: the two kernels that are left, or each of several alone."""
    within = {level.name for level in _levels(target) if set(level.features) <= set(target.features)}
    rows, batches = (_worth(_ranked(role, forest, target, kernels, within)) for role in ("row", "batch"))
    if len(rows) == len(batches) == 1:
        return [_planned(rows[0], batches[0], kernels)]
    parts = dict.fromkeys(part for _, part in (*rows, *batches))
    return [_pair(part, part, kernels, 0) for part in parts]


def _levels(target: Target) -> list[IsaLevel]:
    """The levels of the target's architecture, from the least to the most."""
    return [level for level in ISA_LEVELS.values() if level.arch in (None, target.arch)]


Reckoned = tuple[float, Part]  # cycles a row, and the kernel with its favourite options


def _ranked(role: Role, forest: Forest, target: Target, kernels: Kernels, within: Set[str]) -> list[Reckoned]:
    """The kernels of a role that take the forest and need no more than these levels, the cheapest first.

    Of kernels that are reckoned alike, the first of KERNELS comes first.
    """
    found = []
    for name in KERNELS:
        made = kernels(name)
        if role in made.serves and made.isa in within:
            found += [(made.cost(forest)[role], part) for part in _variants(name, forest, target, kernels)[:1]]
    assert found, "the last kernel takes every forest"
    return sorted(found, key=lambda item: item[0])


def _worth(ranked: Sequence[Reckoned]) -> list[Reckoned]:
    """Those that cost little more than the cheapest."""
    return [item for item in ranked if item[0] <= WORTH * ranked[0][0]]


def _planned(row: Reckoned, batch: Reckoned, kernels: Kernels) -> Plan:
    """The plan of two kernels, with the crossover that their costs give: where rows take as long as a block does."""
    rows = kernels(batch[1].kernel).block * batch[0] / row[0]
    return _pair(row[1], batch[1], kernels, min(max(round(rows), _LEAST_CROSSOVER), _MOST_CROSSOVER))


def _variants(name: str, forest: Forest, target: Target, kernels: Kernels) -> list[Part]:
    """The kernel with each of its options, the favourite first; none where it refuses the forest."""
    if kernels(name).refuses(forest) is not None:
        return []
    return [Part(name, tuple(options.items())) for options in kernels(name).variants(forest, target)]


def _pair(row: Part, batch: Part, kernels: Kernels, crossover: int) -> Plan:
    """The plan of two parts, at the level that both can do with."""
    isa = max((kernels(part.kernel).isa for part in (row, batch)), key=_LEVELS.index)
    return Plan(row, batch, isa, 0 if row == batch else crossover)


def plainest(forest: Forest, target: Target, kernels: Kernels) -> Plan:
    """The last kernel of KERNELS alone, which takes every forest everywhere and adds in the source's order."""
    part = _variants(list(KERNELS)[-1], forest, target, kernels)[0]
    return _pair(part, part, kernels, 0)


# ---- by measurement ----


def serve_both(kernels: Kernels, plans: Iterable[Plan]) -> bool:
    """Whether there is a kernel for rows and one for batches among those that were measured alone."""
    return {role for plan in plans for role in kernels(plan.row.kernel).serves} == {"row", "batch"}


def together(kernels: Kernels, times: Times) -> Plan:
    """The best at rows and the best at batches of kernels that were measured alone."""
    row = _best("row", _ROW_SIZES, times, kernels)
    batch = _best("batch", _BATCH_SIZES, times, kernels)
    if row.row.kernel == batch.row.kernel:
        return row
    return _pair(row.row, batch.row, kernels, _crossover(times[row], times[batch]))


def variants(plan: Plan, forest: Forest, target: Target, kernels: Kernels) -> list[Plan]:
    """The plan with each of the other options of its kernels."""
    rows, batches = (_variants(part.kernel, forest, target, kernels) for part in (plan.row, plan.batch))
    if plan.row == plan.batch:
        return [_pair(part, part, kernels, 0) for part in rows if part != plan.row]
    return [
        *(_pair(part, plan.batch, kernels, plan.crossover) for part in rows if part != plan.row),
        *(_pair(plan.row, part, kernels, plan.crossover) for part in batches if part != plan.batch),
    ]


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
    faster = (size for size in CROSSOVERS if size in batch and batch[size] <= row.get(size, math.inf))
    return next(faster, CROSSOVERS[-1])
