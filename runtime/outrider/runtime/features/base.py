"""What every feature step is: a record of its parameters that can be fitted and applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from outrider.runtime.features.plan import ColumnKind

Floats: TypeAlias = NDArray[np.float64]
#: A clean column: float64 [n] for `number` and `time`, object [n] of str or None for `string`.
Column: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """Training rows of a step's inputs: clean columns of one length and, where there are any, labels.

    `labels` is float64 [n]: 1.0 where a row is of the positive class, 0.0 elsewhere.
    """

    columns: tuple[Column, ...]
    labels: Floats | None


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """One operation from columns to one column. Its fields are its parameters, declared or learned.

    A step works row by row: what a row gives never depends on the other rows of the call, so that one row on a
    device and a million rows in training agree bit for bit. Missing input gives NaN.
    """

    #: The kinds of the inputs, in order. Outputs of earlier steps are `number`.
    takes: ClassVar[tuple[ColumnKind, ...]] = ()

    def __call__(self, columns: Sequence[Column]) -> Floats:
        """Apply the step to clean columns of one length. Returns float64 [n]."""
        assert len(columns) == len(self.takes)
        with np.errstate(over="ignore", invalid="ignore"):  # inf is a value here, and inf - inf is missing
            return self._apply(columns)

    def _apply(self, columns: Sequence[Column]) -> Floats:
        raise TypeError(f"{type(self).__name__} does not say what it makes of {len(columns)} columns")

    def fit(self, sample: Sample) -> Step:
        """This step with what it needs to know learned from training rows. Most steps have nothing to learn."""
        assert len(sample.columns) == len(self.takes)
        return self

    def uses_labels(self) -> bool:
        """Whether `fit` learns from labels, so that it must see other rows than the model is trained on."""
        return False
