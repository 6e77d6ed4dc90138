"""What the figures say: the best rival of each cell, Outrider's ratio to it, and the goals it is held against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.trees.peers import is_ours
from benchmarks.trees.records import Cell, Result

OURS, OURS_AVX2 = "outrider", "outrider-avx2"

#: How many times as fast as the best peer, one thread, AVX-512: shape -> smallest batch -> ratio.
GOALS: dict[str, dict[int, float]] = {
    "a": {1: 25, 64: 12, 1024: 14},
    "b": {1: 13, 64: 6, 1024: 8},
    "c": {1: 18, 64: 10, 1024: 9.5},
    "d": {1: 17, 64: 65, 1024: 85},
    "e": {1: 25, 64: 13, 1024: 18},
    "real": {1: 1},
}
#: The same with AVX2 only.
GOALS_AVX2: dict[str, dict[int, float]] = {shape: {1024: 4} for shape in ("a", "b", "c")}
#: Case -> seconds that its compile may take, MiB of memory at its peak, and bytes of its artifact.
COMPILE_S = {"b": 5.0, "5000": 60.0}
COMPILE_PEAK_MB = {"b": 500.0}
ARTIFACT_BYTES = {"a": 120 * 1024}

_RIVALS = ("measured", "own forest")


@dataclass(frozen=True)
class Ratio:
    """One cell of ours against its best rival. `value` is how many times as fast ours is; `goal` None: none is set."""

    case: str
    shape: str
    batch: int
    value: float
    rival: str
    goal: float | None

    @property
    def met(self) -> bool:
        """Whether the goal is reached, as it is shown: with one digit."""
        return self.goal is None or round(self.value, 1) >= self.goal


def goal(goals: dict[str, dict[int, float]], shape: str, batch: int) -> float | None:
    """The goal of a batch size: that of the largest size that is not above it."""
    reached = [(size, value) for size, value in goals.get(shape, {}).items() if size <= batch]
    return max(reached)[1] if reached else None


def best_rival(result: Result, case: str, batch: int) -> Cell | None:
    """The fastest peer of a cell whose results are right."""
    right = {entry.peer for entry in result.entries if entry.case == case and entry.status in _RIVALS}
    cells = [cell for cell in result.cells if cell.case == case and cell.batch == batch]
    rivals = [cell for cell in cells if cell.peer in right and not is_ours(cell.peer)]
    return min(rivals, key=lambda cell: cell.ns_min, default=None)


def ratios(result: Result, name: str = OURS) -> list[Ratio]:
    """All cells of one of ours that have a rival, in the order of the run."""
    goals = GOALS_AVX2 if name == OURS_AVX2 else GOALS
    shapes = {case.name: case.shape for case in result.cases}
    right = {entry.case for entry in result.entries if entry.peer == name and entry.status == "measured"}
    found = []
    for cell in result.cells:
        rival = best_rival(result, cell.case, cell.batch)
        if cell.peer != name or cell.case not in right or rival is None:
            continue
        wanted = goal(goals, shapes[cell.case], cell.batch)
        value = rival.ns_min / cell.ns_min
        found.append(Ratio(cell.case, shapes[cell.case], cell.batch, value, rival.peer, wanted))
    return found


def worst(found: Iterable[Ratio]) -> list[Ratio]:
    """The smallest ratio of each shape and batch size, shapes and sizes in rising order."""
    smallest: dict[tuple[str, int], Ratio] = {}
    for ratio in found:
        key = (ratio.shape, ratio.batch)
        if key not in smallest or ratio.value < smallest[key].value:
            smallest[key] = ratio
    return [smallest[key] for key in sorted(smallest)]
