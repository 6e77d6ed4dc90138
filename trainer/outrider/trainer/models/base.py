"""What every kind of model is: a record of its settings that trains, and that reads what it trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from outrider.runtime.errors import UnsupportedError
from outrider.trainer.progress import Progress

#: Class probabilities: float32 [n] of the positive class of two, [n, classes] with more.
Scores: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Rows to fit on. `features` float32 [n, f]; `labels` int64 [n], indices of classes; `weights` float32 [n]."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]


class Trained(Protocol):
    """A trained model."""

    @property
    def rounds(self) -> int:
        """How many rounds of training were kept."""

    def scores(self, features: NDArray[np.float32]) -> Scores:
        """Class probabilities of rows, float32 [n, f]."""

    def serialise(self) -> bytes:
        """The model in its framework's own file format."""


class ModelKind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of model. Its fields are the keys of the recipe's `[model]` beside `kind`."""

    def framework(self) -> str:
        """The framework's name, as the compiler's frontends know it."""
        raise UnsupportedError(f"{type(self).__name__} names no framework")

    def file_name(self) -> str:
        """What the serialised model's file is called in a model directory."""
        raise UnsupportedError(f"{type(self).__name__} names no file")

    def train(self, train: Sample, valid: Sample, names: tuple[str, ...], classes: int, progress: Progress) -> Trained:
        """Fit on `train`, stopping early by `valid`. `names` are the features' names."""
        progress("train", f"{len(train.labels)} rows, {len(valid.labels)} to stop by, {classes} classes, {names}")
        raise UnsupportedError(f"{type(self).__name__} does not say how it trains")

    def load(self, data: bytes) -> Trained:
        """Read what `Trained.serialise` wrote. Raises BadModelError."""
        raise UnsupportedError(f"{type(self).__name__} cannot read {len(data)} bytes")
