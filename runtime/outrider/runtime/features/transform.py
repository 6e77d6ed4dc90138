"""Running a feature plan, and fitting one."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import BadRecipeError, UnsupportedError
from outrider.runtime.features import STEPS
from outrider.runtime.features.base import Floats, Sample, Step
from outrider.runtime.features.columns import RawTable, clean_columns
from outrider.runtime.features.plan import ColumnKind, FeaturePlan, FeatureStep

_MAX_PREPARED = 16
_prepared: dict[int, tuple[FeaturePlan, Transform]] = {}


def compute(plan: FeaturePlan, raw: RawTable) -> NDArray[np.float32]:
    """The features of raw rows: float32 [n, len(plan.outputs)], C-contiguous.

    Every row is computed by itself, in float64, and rounded once at the end, so that a row gives the same bits
    alone on a device and among all others in training. Raises BadDataError naming the column where `raw` does not
    fit the plan, UnsupportedError for a step this release does not know, BadRecipeError for a plan that is wrong.
    """
    known = _prepared.get(id(plan))
    if known is None or known[0] is not plan:
        if len(_prepared) >= _MAX_PREPARED:
            _prepared.clear()
        known = _prepared[id(plan)] = (plan, Transform(plan))
    return known[1](raw)


def fit_plan(declared: FeaturePlan, raw: RawTable, labels: Floats | None = None) -> FeaturePlan:
    """The declared plan with what its steps learn from these rows: vocabularies, places, sets.

    `labels`: float64 [n], 1.0 for the positive class, needed only by steps that learn from labels. Fitting a fitted
    plan changes nothing. Raises BadDataError or BadRecipeError.
    """
    steps = make_steps(declared)
    table = clean_columns(declared, raw)
    fitted: list[FeatureStep] = []
    for declaration, step in zip(declared.steps, steps, strict=True):
        columns = tuple(table[name] for name in declaration.inputs)
        learned = step.fit(Sample(columns=columns, labels=labels))
        table[declaration.output] = learned(columns)
        fitted.append(msgspec.structs.replace(declaration, params=_parameters(learned)))
    return msgspec.structs.replace(declared, steps=tuple(fitted))


class Transform:
    """A feature plan made ready to run. `Transform(plan)(raw)` is `compute(plan, raw)`."""

    def __init__(self, plan: FeaturePlan) -> None:
        self.plan = plan
        self._steps = make_steps(plan)

    def __call__(self, raw: RawTable) -> NDArray[np.float32]:
        """Compute the features of raw rows (see `compute`)."""
        table = clean_columns(self.plan, raw)
        rows = len(next(iter(table.values())))
        for declaration, step in zip(self.plan.steps, self._steps, strict=True):
            table[declaration.output] = step([table[name] for name in declaration.inputs])
        features = np.empty((rows, len(self.plan.outputs)), dtype=np.float32)
        with np.errstate(over="ignore"):  # beyond float32 is infinite, the same everywhere
            for position, name in enumerate(self.plan.outputs):
                features[:, position] = table[name]
        features[np.isnan(features)] = np.nan  # one NaN: its sign would depend on how NumPy vectorised the row
        return features


def make_steps(plan: FeaturePlan) -> tuple[Step, ...]:
    """The plan's steps, each made from its parameters, with names, kinds and parameters checked.

    Raises BadRecipeError naming the step, UnsupportedError for an operation that this release does not know.
    """
    if not plan.columns or not plan.outputs:
        raise BadRecipeError("a feature plan needs at least one column and one output")
    kinds: dict[str, ColumnKind] = {}
    for column in plan.columns:
        _define(kinds, column.name, column.kind, "column")
    steps = []
    for declaration in plan.steps:
        steps.append(_make_step(declaration, kinds))
        _define(kinds, declaration.output, "number", "feature")
    for name in plan.outputs:
        if name not in kinds:
            raise BadRecipeError(f"the feature {name!r} is an output, but no step makes it")
        if kinds[name] != "number":
            raise BadRecipeError(f"the column {name!r} is a {kinds[name]}, so it cannot be a feature without a step")
    if len(set(plan.outputs)) != len(plan.outputs):
        raise BadRecipeError("a feature plan names an output twice")
    return tuple(steps)


def _define(kinds: dict[str, ColumnKind], name: str, kind: ColumnKind, what: str) -> None:
    if name in kinds:
        raise BadRecipeError(f"the {what} {name!r} is declared twice")
    kinds[name] = kind


def _make_step(declaration: FeatureStep, kinds: Mapping[str, ColumnKind]) -> Step:
    where = f"the step {declaration.op!r} of the feature {declaration.output!r}"
    kind = step_class(declaration.op)
    _check_inputs(where, declaration.inputs, kind.takes, kinds)
    try:
        return msgspec.convert(declaration.params, kind)
    except msgspec.ValidationError as e:
        known = ", ".join(kind.__struct_fields__) or "none"
        raise BadRecipeError(f"{where} has a wrong parameter: {e}", hint=f"it knows: {known}") from e


def step_class(op: str) -> type[Step]:
    """The class of an operation. Raises UnsupportedError naming the known ones."""
    entry = STEPS.get(op)
    if entry is None:
        raise UnsupportedError(f"there is no feature step {op!r}", hint=f"known steps: {', '.join(STEPS)}")
    kind: type[Step] = pkgutil.resolve_name(entry)
    return kind


def _check_inputs(
    where: str, inputs: Sequence[str], takes: Sequence[ColumnKind], kinds: Mapping[str, ColumnKind]
) -> None:
    if len(inputs) != len(takes):
        raise BadRecipeError(f"{where} takes {len(takes)} inputs ({', '.join(takes)}), got {len(inputs)}")
    for name, wanted in zip(inputs, takes, strict=True):
        if name not in kinds:
            raise BadRecipeError(f"{where} reads {name!r}, which is no column and no earlier feature")
        if kinds[name] != wanted:
            raise BadRecipeError(f"{where} reads {name!r}, a {kinds[name]}, but takes a {wanted}")


def _parameters(step: Step) -> dict[str, float | int | str | bool | tuple[str | float, ...]]:
    """The step's parameters as the plan carries them; None, which is no value there, is left out."""
    return {name: value for name, value in msgspec.structs.asdict(step).items() if value is not None}
