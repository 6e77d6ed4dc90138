"""Which kernels an artifact holds: a plan is a kernel for rows, one for batches and an instruction-set level.

Where this machine can run the artifacts, plans compete by measurement (`outrider.compiler.search`): `solos` first,
then the `pair` of the best. Elsewhere `rule` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from outrider.compiler.trees.forest import Forest
from outrider.compiler.trees.kernels import BASELINE, ISA_LEVELS, KERNELS, IsaLevel, Kernel, Role
from outrider.runtime.target import Target

CROSSOVER = 32  # rows: batch kernels work on 64 at a time, and overtake single rows at 25 to 40

Kernels = Callable[[str], Kernel]


@dataclass(frozen=True)
class Part:
    """A kernel with its options."""

    kernel: str
    options: dict[str, str] = field(default_factory=dict)


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
            return {"kernel": self.row.kernel, **self.row.options, **level}
        return {
            "row": self.row.kernel,
            **{f"row.{key}": value for key, value in self.row.options.items()},
            "batch": self.batch.kernel,
            **{f"batch.{key}": value for key, value in self.batch.options.items()},
            "crossover": str(self.crossover),
            **level,
        }


def read_plan(options: Mapping[str, str]) -> Plan:
    """The plan that the options of a candidate describe. Without a kernel among them, it is K2."""
    isa = options.get("isa", BASELINE)
    if "row" in options:
        row, batch = (Part(options[role], _under(role, options)) for role in ("row", "batch"))
        return Plan(row, batch, isa, int(options["crossover"]))
    own = {key: value for key, value in options.items() if key not in ("kernel", "isa")}
    part = Part(options.get("kernel", "k2"), own)
    return Plan(part, part, isa)


def _under(role: str, options: Mapping[str, str]) -> dict[str, str]:
    return {key[len(role) + 1 :]: value for key, value in options.items() if key.startswith(f"{role}.")}


def rule(forest: Forest, target: Target, kernels: Kernels) -> tuple[Plan, ...]:
    """The plans to ship where nothing is measured, the most demanding level first: the selection rule.

    For each level of the target's architecture, from the top, and for each role: the first kernel of KERNELS that
    serves the role, needs no more than the level, and takes the forest, with its favourite options. A level that
    gains no kernel over the one below ships nothing. Among today's kernels:

    | level | rows | batches |
    | --- | --- | --- |
    | x86-64-v4-vbmi | k2 | k2 |
    | x86-64-v3 | k2 | k2 |
    | baseline, every architecture | k2 | k2 |
    """
    plans: dict[str, Plan] = {}
    for level in levels(target):
        row, batch = (_first(forest, target, kernels, level, role) for role in ("row", "batch"))
        plan = pair(row, batch, kernels)
        plans[plan.isa] = plan
    return tuple(reversed(plans.values()))


def levels(target: Target) -> list[IsaLevel]:
    """The levels of the target's architecture, from the least to the most."""
    return [level for level in ISA_LEVELS.values() if level.arch in (None, target.arch)]


def pair(row: Part, batch: Part, kernels: Kernels, crossover: int = CROSSOVER) -> Plan:
    """The plan of two parts, at the level that both can do with."""
    order = list(ISA_LEVELS)
    isa = max((kernels(part.kernel).isa for part in (row, batch)), key=order.index)
    return Plan(row, batch, isa, 0 if row == batch else crossover)


def solos(forest: Forest, target: Target, kernels: Kernels) -> Iterator[Plan]:
    """Each variant of each kernel that the target runs and that takes the forest, alone for all batch sizes."""
    for part in _parts(forest, target, kernels):
        plan = pair(part, part, kernels)
        if set(ISA_LEVELS[plan.isa].features) <= set(target.features):
            yield plan


def _parts(forest: Forest, target: Target, kernels: Kernels) -> Iterator[Part]:
    for name in KERNELS:
        found = kernels(name)
        if found.isa in {level.name for level in levels(target)} and found.refuses(forest) is None:
            for options in found.variants(forest, target):
                yield Part(name, dict(options))


def _first(forest: Forest, target: Target, kernels: Kernels, level: IsaLevel, role: Role) -> Part:
    order = list(ISA_LEVELS)
    for name in KERNELS:
        found = kernels(name)
        fits = role in found.serves and order.index(found.isa) <= order.index(level.name)
        if fits and found.refuses(forest) is None:
            return Part(name, dict(found.variants(forest, target)[0]))
    raise AssertionError("the last kernel takes every forest")
