"""`digits`: a small CNN trained on the 1,797 handwritten digits that ship with scikit-learn, so accuracy is real."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from benchmarks.networks.nets.base import Defined, Samples
from torch import nn

_TRAINED, _CALIBRATION = 1100, 256  # rows, in the order of a seeded draw; what is left, 441, is held out
_EPOCHS, _BATCH = 20, 50
_RATE = 3e-3


class DigitsModule(nn.Module):
    """float32 [n, 1, 8, 8], 0 to 1 -> float32 [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, out, stride in ((1, 32, 1), (32, 64, 2), (64, 64, 1)):
            layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        scores: torch.Tensor = self.head(self.features(x).mean([2, 3]))
        return scores


class Digits(Defined):
    """Trained for a few seconds; the rows that calibrate and those held out were not trained on."""

    description: ClassVar[str] = "CNN, 1 x 8 x 8, trained on scikit-learn's digits"
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"x": (1, 1, 8, 8)}

    def samples(self) -> Samples:
        """Real digits with their labels."""
        images, labels = _rows(_TRAINED, None)
        cut = _CALIBRATION
        return Samples({"x": images[:cut]}, {"x": images[cut:]}, labels[:cut], labels[cut:])

    def architecture(self) -> nn.Module:
        """Three convolutions and a linear layer."""
        return DigitsModule()

    def prepare(self, module: nn.Module, samples: Samples) -> None:
        """Train with Adam, the rate falling to zero."""
        images, labels = (torch.from_numpy(array) for array in _rows(0, _TRAINED))
        adam = torch.optim.Adam(module.parameters(), lr=_RATE)
        steps = _EPOCHS * (_TRAINED // _BATCH)
        rate = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=_RATE, total_steps=steps)
        module.train()
        for _ in range(_EPOCHS):
            for chosen in torch.randperm(_TRAINED).split(_BATCH):
                adam.zero_grad()
                nn.functional.cross_entropy(module(images[chosen]), labels[chosen]).backward()
                adam.step()
                rate.step()


def _rows(start: int, stop: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [n, 1, 8, 8] and labels int64 [n], of a part of the seeded draw."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))[start:stop]
    images = (found.images[order] / 16).astype(np.float32)[:, None]
    return images, found.target[order].astype(np.int64)
