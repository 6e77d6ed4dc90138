"""What a bisection finds, and how errors are counted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from outrider.compiler.debug.graph import INPUT, Origin
from outrider.compiler.model import Array

BEYOND = {"fp16": 0.01, "int8": 0.1, "mixed": 0.1}  # relative L2 errors that are more than the precision explains
BEYOND_EXACT = 1e-3


class TensorError(msgspec.Struct, frozen=True, kw_only=True):
    """How far a tensor of the artifact is from the source's: the relative L2 error over all calls, None if infinite.

    `before`: the largest error of what it is made of; 0 for what is made of inputs only. `quantised`: the tensor as
    the artifact's int8 holds it, where the operator's own output came before. `found_as`: its name in the artifact.
    `problem`: why a part that ends at the tensor could not be built or run, which counts as infinitely far off.
    """

    tensor: str
    found_as: str
    operator: str
    node: str
    module: str | None
    error: float | None
    before: float | None
    quantised: bool = False
    problem: str | None = None

    def __str__(self) -> str:
        what = f"the quantised tensor {self.tensor}" if self.quantised else f"the tensor {self.tensor}"
        if self.operator == INPUT:
            what, made_by = f"the quantised input {self.tensor}", ""
        else:
            made_by = f", of {self.operator} {self.node}".rstrip()
        module = f", of the torch module {self.module}" if self.module else ""
        error = f"it fails, {self.problem}" if self.problem else f"error {_text(self.error)}"
        return f"{what}{made_by}{module}: {error}, before {_text(self.before)}"


class Bisection(msgspec.Struct, frozen=True, kw_only=True):
    """What `outrider debug --bisect --json` prints.

    `method`: `tensors` compares all that the artifact's own graph names, `parts` compiles parts of the source that end
    at a tensor. `first` is the first whose error is above `beyond`, a relative L2 error; None where none is. `tensors`:
    all that were compared, in the order of the source's graph. `outputs`: the error of the artifact's outputs, as the
    device would run it; None if infinite.
    """

    bundle: str
    artifact: str
    method: str
    beyond: float
    calls: int
    outputs: float | None
    first: TensorError | None
    tensors: tuple[TensorError, ...]


class Tally:
    """A relative L2 error, summed up call by call; infinite where shapes differ or a value is not finite."""

    def __init__(self) -> None:
        self._off = self._size = 0.0

    def add(self, found: Array, wanted: Array) -> None:
        """One call's tensor, and the source's."""
        if found.shape != wanted.shape:
            self._off = math.inf
            return
        one, other = found.astype(np.float64), wanted.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            same = (one == other) | (np.isnan(one) & np.isnan(other))
            off = float(np.sum(np.where(same, 0.0, one - other) ** 2))
            self._size += float(np.sum(np.where(np.isfinite(other), other, 0.0) ** 2))
        self._off += off if math.isfinite(off) else math.inf

    @property
    def error(self) -> float | None:
        """What it comes to; None where it is infinite."""
        if self._off == 0:
            return 0.0
        return math.sqrt(self._off / self._size) if self._size and math.isfinite(self._off) else None


def describe(found: Bisection) -> str:
    """The finding as text."""
    what = "tensor" if found.method == "tensors" else "part of the graph"
    if len(found.tensors) != 1:
        what = "tensors" if found.method == "tensors" else "parts of the graph"
    calls = f"{found.calls} call{'s' * (found.calls != 1)}"
    lines = [
        f"{found.artifact} of {found.bundle} on {calls}, {len(found.tensors)} {what} compared",
        f"outputs: error {_text(found.outputs)} (relative L2)",
    ]
    if found.first is not None:
        return "\n".join((*lines, f"the first beyond {found.beyond:g}: {found.first}"))
    worst = max(found.tensors, key=lambda one: math.inf if one.error is None else one.error, default=None)
    lines.append(f"nothing is beyond {found.beyond:g}" + (f"; the farthest off is {worst}" if worst else ""))
    if is_beyond(found.outputs, found.beyond):
        lines.append("but the outputs are: the engine computes its own way, and it is there that they diverge")
    return "\n".join(lines)


def tensor_error(
    origin: Origin,
    error: float | None,
    before: float | None,
    *,
    found_as: str = "",
    quantised: bool = False,
    problem: str | None = None,
) -> TensorError:
    """The record of one tensor."""
    return TensorError(
        tensor=origin.tensor,
        found_as=found_as or origin.tensor,
        operator=origin.operator,
        node=origin.node,
        module=origin.module,
        error=error,
        before=before,
        quantised=quantised,
        problem=problem,
    )


def is_beyond(error: float | None, limit: float) -> bool:
    """Whether what has this error diverges."""
    return error is None or error > limit


def largest(errors: Sequence[float | None]) -> float | None:
    """The largest error, None (infinite) among them first; 0 of none."""
    return None if None in errors else max((one for one in errors if one is not None), default=0.0)


def _text(error: float | None) -> str:
    return "infinite" if error is None else f"{error:.3g}"
