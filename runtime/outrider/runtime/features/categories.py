"""Steps on strings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import msgspec
import numpy as np

from outrider.runtime.errors import BadDataError
from outrider.runtime.features.base import Column, Floats, Sample, Step
from outrider.runtime.features.plan import ColumnKind


class Category(Step, frozen=True, kw_only=True):
    """The position of the string in the vocabulary `values`; `unseen` for any other string; NaN where missing.

    Where `values` is not declared, the most frequent strings of training are learned, most frequent first, at most
    `max_values` of them, each in at least `min_rows` rows. `unseen` None is the number of values: one code past
    the last.
    """

    takes: ClassVar[tuple[ColumnKind, ...]] = ("string",)
    values: tuple[str, ...] = ()
    unseen: float | None = None
    max_values: int = 1000
    min_rows: int = 1

    def fit(self, sample: Sample) -> Category:
        """Learn the vocabulary, where it was not declared."""
        values = self.values
        if not values:
            counts = Counter(value for value in sample.columns[0].tolist() if value is not None)
            ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            values = tuple(value for value, rows in ranked if rows >= self.min_rows)[: self.max_values]
        if not values:
            raise BadDataError(f"category cannot learn a vocabulary: no string is in {self.min_rows} rows or more")
        unseen = float(len(values)) if self.unseen is None else self.unseen
        return msgspec.structs.replace(self, values=values, unseen=unseen)

    @cached_property
    def _codes(self) -> dict[str | None, float]:
        codes: dict[str | None, float] = {value: float(code) for code, value in enumerate(self.values)}
        codes[None] = float("nan")
        return codes

    def _apply(self, columns: Sequence[Column]) -> Floats:
        codes, unseen = self._codes, float(len(self.values)) if self.unseen is None else self.unseen
        return np.array([codes.get(value, unseen) for value in columns[0].tolist()], dtype=np.float64)


class InSet(Step, frozen=True, kw_only=True):
    """1 where the string is one of `values`, else 0; NaN where missing.

    Where `values` is not declared, the set is learned from labels: every string whose rows were of the positive
    class in at least the share `min_rate`, in at least `min_rows` rows. Such a set must be learned from rows that
    the model is not trained on, or it would repeat their labels; the trainer keeps the earliest rows for it.
    """

    takes: ClassVar[tuple[ColumnKind, ...]] = ("string",)
    values: tuple[str, ...] | None = None
    min_rate: float = 0.9
    min_rows: int = 2

    def uses_labels(self) -> bool:
        """Whether the set is learned."""
        return self.values is None

    def fit(self, sample: Sample) -> InSet:
        """Learn the set, where it was not declared."""
        if self.values is not None:
            return self
        if sample.labels is None:
            raise BadDataError("in_set needs labels to learn its set", hint="declare values instead")
        rows: Counter[str] = Counter()
        positive: Counter[str] = Counter()
        for value, label in zip(sample.columns[0].tolist(), sample.labels.tolist(), strict=True):
            if value is not None:
                rows[value] += 1
                positive[value] += label > 0
        chosen = (value for value, n in rows.items() if n >= self.min_rows and positive[value] >= self.min_rate * n)
        return msgspec.structs.replace(self, values=tuple(sorted(chosen)))

    @cached_property
    def _members(self) -> dict[str | None, float]:
        members: dict[str | None, float] = dict.fromkeys(self.values or (), 1.0)
        members[None] = float("nan")
        return members

    def _apply(self, columns: Sequence[Column]) -> Floats:
        if self.values is None:
            raise BadDataError("in_set has no set", hint="fit the plan, or declare values")
        members = self._members
        return np.array([members.get(value, 0.0) for value in columns[0].tolist()], dtype=np.float64)
