"""What stands between an ONNX graph's input and its trees, feature by feature, and thresholds drawn back through it.

Exporters put a scaler, an imputer or a choice of columns before the trees. Each feature of the trees is then a function
g of one column of the input, made of additions and multiplications by constants, which never falls or never rises, in
floating point too. So `g(x) <= t` is `x <= T` or `x > T` for some number T of the input's type, which a search
finds by computing g just as ONNX Runtime does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Name = Literal["add", "sub", "mul", "div", "impute", "round", "widen"]
# Keys of floats as integers in their order, as `sort_key` makes them: the integer type and the key of infinity.
_KEYS: dict[str, tuple[Any, int]] = {"float32": (np.int32, 0x7F800000), "float64": (np.int64, 0x7FF0000000000000)}


@dataclass(frozen=True)
class Step:
    """One operation: with `number`, of the type that values have there, or a change to float32 or float64."""

    name: Name
    number: Any = None

    def run(self, values: NDArray[Any]) -> NDArray[Any]:
        """The values after it, in the type that ONNX Runtime gives them."""
        if self.name == "impute":
            return np.where(np.isnan(values), self.number, values).astype(values.dtype)
        if self.name in ("round", "widen"):
            return values.astype(np.float32 if self.name == "round" else np.float64)
        operation = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[self.name]
        found: NDArray[Any] = operation(values, self.number)
        return found

    @property
    def falls(self) -> bool:
        """Whether the result falls where the value rises."""
        return self.name in ("mul", "div") and bool(self.number < 0)


@dataclass(frozen=True)
class Feature:
    """A column of the input, and the steps from it to the trees."""

    column: int
    steps: tuple[Step, ...] = ()

    def then(self, *steps: Step) -> Feature:
        """With more steps at the end."""
        return Feature(self.column, (*self.steps, *steps))

    @property
    def falls(self) -> bool:
        """Whether g falls where the column rises."""
        return sum(step.falls for step in self.steps) % 2 == 1

    def run(self, values: NDArray[Any]) -> NDArray[Any]:
        """g of values of the input's type."""
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            for step in self.steps:
                values = step.run(values)
        return values

    def draw_back(self, limits: NDArray[np.float64], kind: Literal["float32", "float64"]) -> NDArray[np.float64]:
        """For each limit t the T of the module's docstring: the last number of the input's type `kind` to go left.

        That is the last x with g(x) <= t, or with g(x) > t where g falls. NaN where no number goes left.
        """
        if not self.steps:
            return limits
        _integer, infinity = _KEYS[kind]
        low, high = np.full(limits.shape, ~infinity - 1, np.int64), np.full(limits.shape, infinity + 1, np.int64)
        while (low + 1 < high).any():
            middle = (low >> 1) + (high >> 1) + (low & high & 1)  # the sum of both may not fit
            left = (self.run(_values(middle, kind)) <= limits) ^ self.falls
            low, high = np.where(left, middle, low), np.where(left, high, middle)
        return np.where(low < ~infinity, np.nan, _values(np.maximum(low, ~infinity), kind).astype(np.float64))


def _values(keys: NDArray[np.int64], kind: str) -> NDArray[Any]:
    """The floats of keys: the inverse of `sort_key`, for either type."""
    integer, _infinity = _KEYS[kind]
    keys = keys.astype(integer)
    return np.where(keys < 0, keys ^ np.iinfo(integer).max, keys).astype(integer).view(kind)
