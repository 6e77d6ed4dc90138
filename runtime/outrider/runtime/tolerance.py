"""How far outputs may be from the source model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Tolerance:
    """Every |error| <= atol + rtol * |value| + of_max * m, with m the largest finite |value| of the same output.

    Of an output of integers, truth values or text, the share `differing` may differ.
    """

    atol: float = 0.0
    rtol: float = 0.0
    of_max: float = 0.0
    differing: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.atol:g}"] if self.atol or not (self.rtol or self.of_max) else []
        parts += [f"{self.rtol:g} |value|"] if self.rtol else []
        parts += [f"{self.of_max:g} of the largest"] if self.of_max else []
        return " + ".join(parts)

    def allowed(self, wanted: Array) -> NDArray[np.float64]:
        """The largest allowed error of each value."""
        return self._allowed(_sizes(wanted))

    def _allowed(self, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
        of_max = self.of_max if np.isinf(self.of_max) else self.of_max * sizes.max(initial=0.0)
        return np.asarray(self.atol + self.rtol * sizes + of_max)


@dataclass(frozen=True)
class Deviation:
    """What a comparison found: the largest errors, absolute and of |value|; the largest of an output's largest |value|;
    the largest share of differing values that are no floats; and what is beyond the tolerance, in words by output.

    `l2` is the largest relative L2 error, the norm of an output's errors by that of its values.
    """

    absolute: float = 0.0
    relative: float = 0.0
    of_max: float = 0.0
    l2: float = 0.0
    differing: float = 0.0
    problems: Mapping[str, str] | None = None


def compare(found: Mapping[str, Array], wanted: Mapping[str, Array], tolerance: Tolerance) -> Deviation:
    """Outputs against the source model's. Equal infinities, and NaN in the same places, are no error."""
    absolute = relative = of_max = l2 = differing = 0.0
    problems: dict[str, str] = {}
    for name, truth in wanted.items():
        value = found[name]
        if value.shape != truth.shape:
            problems[name] = f"has the shape {value.shape}, not {truth.shape}"
            absolute = relative = of_max = l2 = differing = np.inf
        elif truth.dtype.kind != "f":
            wrong = int(np.count_nonzero(value != truth))
            share = wrong / max(truth.size, 1)
            differing = max(differing, share)
            if share > tolerance.differing:
                problems[name] = f"differs in {wrong} of {truth.size} values"
        else:
            errors, sizes = errors_of(value, truth), _sizes(truth)
            largest, sized = float(errors.max(initial=0.0)), sizes > 0
            absolute = max(absolute, largest)
            relative = max(relative, float((errors[sized] / sizes[sized]).max(initial=0.0)))
            of_max = max(of_max, _ratio(largest, float(sizes.max(initial=0.0))))
            l2 = max(l2, _ratio(float(np.linalg.norm(errors)), float(np.linalg.norm(sizes))))
            wrong = int(np.count_nonzero(errors > tolerance._allowed(sizes)))
            if wrong:
                problems[name] = f"is out of tolerance in {wrong} of {truth.size} values"
    return Deviation(absolute, relative, of_max, l2, differing, problems)


def errors_of(found: Array, wanted: Array) -> NDArray[np.float64]:
    """Absolute errors; equal infinities and NaN on both sides are no error, on one side an infinite one."""
    one, other = found.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        errors = np.abs(one - other)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    return np.where(same, 0.0, np.where(np.isfinite(errors), errors, np.inf))


def _sizes(values: Array) -> NDArray[np.float64]:
    """Absolute values, 0 for what is not finite."""
    return np.abs(np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0))


def _ratio(error: float, size: float) -> float:
    return 0.0 if error == 0 else error / size if size > 0 else np.inf
