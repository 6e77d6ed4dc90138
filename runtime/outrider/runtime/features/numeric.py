"""Steps on numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from outrider.runtime.features.base import Column, Floats, Step
from outrider.runtime.features.plan import ColumnKind


class Number(Step, frozen=True, kw_only=True):
    """The column itself. True is 1, False is 0."""

    takes: ClassVar[tuple[ColumnKind, ...]] = ("number",)

    def _apply(self, columns: Sequence[Column]) -> Floats:
        return columns[0].astype(np.float64)


class Log1p(Step, frozen=True, kw_only=True):
    """log(1 + x), natural. Below zero: -log(1 + |x|) where `negative` is "signed", NaN where it is "missing"."""

    takes: ClassVar[tuple[ColumnKind, ...]] = ("number",)
    negative: Literal["signed", "missing"] = "signed"

    def _apply(self, columns: Sequence[Column]) -> Floats:
        x = columns[0]
        result: Floats = np.copysign(np.log1p(np.abs(x)), x)
        return result if self.negative == "signed" else np.where(x < 0, np.nan, result)


class Ratio(Step, frozen=True, kw_only=True):
    """a / b; where b is 0, the constant `zero`, or NaN where none is given."""

    takes: ClassVar[tuple[ColumnKind, ...]] = ("number", "number")
    zero: float | None = None

    def _apply(self, columns: Sequence[Column]) -> Floats:
        a, b = columns
        instead = np.nan if self.zero is None else self.zero
        quotient = a / np.where(b == 0, 1.0, b)
        return np.where(b == 0, np.where(np.isnan(a), np.nan, instead), quotient)


class Difference(Step, frozen=True, kw_only=True):
    """a - b."""

    takes: ClassVar[tuple[ColumnKind, ...]] = ("number", "number")

    def _apply(self, columns: Sequence[Column]) -> Floats:
        result: Floats = columns[0] - columns[1]
        return result
