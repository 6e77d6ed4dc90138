"""The Wisconsin breast cancer measurements that ship with scikit-learn, as an endless-looking stream of rows.

The data set has 569 patients, no time and far too few rows to stream, so this source makes `rows` of them: each is
one patient drawn at random, every measurement blurred by `noise` standard deviations of that measurement, one row
every `spacing_s` seconds. Patients recur, before and after any cutoff; what a model scores here says that the loop
works, not how it would do on new patients.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from outrider.runtime.errors import BadDataError
from outrider.runtime.features import ColumnKind
from outrider.trainer.data.base import Source
from outrider.trainer.data.table import Table
from outrider.trainer.progress import Progress

TIME = "measured_at"
LABEL = "diagnosis"
_START = 1_546_300_800.0  # 2019-01-01T00:00:00Z


class BreastCancer(Source, frozen=True, kw_only=True):
    """Bootstrapped, blurred rows in time order; the same seed gives the same rows."""

    rows: Annotated[int, Meta(ge=100, le=1_000_000)] = 24_000
    noise: Annotated[float, Meta(ge=0, le=1)] = 0.1
    spacing_s: Annotated[float, Meta(gt=0)] = 180.0
    seed: int = 7

    def read(self, wanted: Mapping[str, ColumnKind], folder: Path, progress: Progress) -> Table:
        """Make the wanted columns (see `Source.read`)."""
        from sklearn.datasets import load_breast_cancer

        progress("read", f"scikit-learn's breast cancer data for the recipe in {folder}")
        bunch = load_breast_cancer()
        measured = np.asarray(bunch.data, dtype=np.float64)
        names = [str(name).replace(" ", "_") for name in bunch.feature_names]
        random = np.random.default_rng(self.seed)
        patients = random.integers(0, len(measured), self.rows)
        blurred = measured[patients] + random.normal(size=(self.rows, len(names))) * measured.std(axis=0) * self.noise
        columns = {name: np.maximum(blurred[:, i], 0.0) for i, name in enumerate(names)}
        labels = np.asarray(bunch.target_names, dtype=object)[np.asarray(bunch.target)[patients]]
        columns[LABEL] = np.array([str(label) for label in labels], dtype=object)
        columns[TIME] = _START + self.spacing_s * np.arange(self.rows, dtype=np.float64)
        missing = [name for name in wanted if name not in columns]
        if missing:
            raise BadDataError(f"the data has no column {missing[0]!r}", hint=f"it has {', '.join(columns)}")
        return Table({name: columns[name] for name in wanted})
