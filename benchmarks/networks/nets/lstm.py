"""`lstm`: one recurrent layer, 128 wide, over 100 steps, as for sensor series."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from benchmarks.networks.nets.base import Defined, Feeds, Samples
from torch import nn

_STEPS, _WIDTH, _CLASSES = 100, 128, 10


class LstmModule(nn.Module):
    """float32 [n, 100, 128] -> float32 [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(_WIDTH, _WIDTH, batch_first=True)
        self.head = nn.Linear(_WIDTH, _CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores, of the last step."""
        steps, _ = self.memory(x)
        scores: torch.Tensor = self.head(steps[:, -1])
        return scores


class Lstm(Defined):
    """Random weights, drawn as torch does."""

    description: ClassVar[str] = "LSTM, 128 wide, 100 steps, random weights"
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"x": (1, _STEPS, _WIDTH)}

    def samples(self) -> Samples:
        """Series that drift slowly, as sensors' do."""
        return Samples(_series(64, 1), _series(32, 2))

    def architecture(self) -> nn.Module:
        """One LSTM and a linear layer."""
        return LstmModule()

    def prepare(self, module: nn.Module, samples: Samples) -> None:
        """Random weights do as they are."""


def _series(count: int, seed: int) -> Feeds:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(count, _STEPS, _WIDTH))
    for step in range(1, _STEPS):
        values[:, step] = 0.9 * values[:, step - 1] + np.sqrt(1 - 0.9**2) * values[:, step]
    return {"x": values.astype(np.float32)}
