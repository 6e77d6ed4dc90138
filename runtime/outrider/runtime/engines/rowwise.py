"""A batched model by an artifact that takes a fixed number of rows: one call after another."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from outrider.runtime.engines.base import Array, Engine
from outrider.runtime.errors import EngineFault


class RowWise(Engine):
    """Runs an engine on so many rows at a time. Rows that fill no call are run with the last ones once more."""

    def __init__(self, engine: Engine, rows: int) -> None:
        self._engine, self._rows = engine, rows
        self.binding = engine.binding

    @classmethod
    def open(cls, *_: object, **__: object) -> RowWise:
        """It wraps an engine that is open; see `open_engine`."""
        raise EngineFault("rows are split by `open_engine`")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run a batch of any size. Calls from several threads run as those of the engine do."""
        count = len(next(iter(inputs.values())))
        if count == self._rows:
            return self._engine.run(inputs)
        starts = [min(start, max(count - self._rows, 0)) for start in range(0, max(count, 1), self._rows)]
        found = [self._engine.run(self._part(inputs, start)) for start in starts]
        return {name: self._joined([part[name] for part in found], starts, count) for name in found[0]}

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()

    def _part(self, inputs: Mapping[str, Array], start: int) -> dict[str, Array]:
        """Rows from there on; where there are too few, zeros behind them."""
        parts = {name: array[start : start + self._rows] for name, array in inputs.items()}
        missing = self._rows - len(next(iter(parts.values())))
        if missing == 0:
            return parts
        return {
            name: np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])
            for name, array in parts.items()
        }

    def _joined(self, parts: list[Array], starts: list[int], count: int) -> Array:
        whole = np.empty((count, *parts[0].shape[1:]), parts[0].dtype)
        for part, start in zip(parts, starts, strict=True):
            whole[start : start + self._rows] = part[: count - start]
        return whole
