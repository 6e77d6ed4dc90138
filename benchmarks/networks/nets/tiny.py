"""`tiny`: a depthwise-separable CNN on 3 x 96 x 96, as a microcontroller-class camera would run."""

from __future__ import annotations

from typing import ClassVar

import torch
from benchmarks.networks.nets.base import Defined, Samples, calibrate_batch_norms, pictures
from torch import nn


def convolution(channels: int, out: int, stride: int, *, size: int = 3, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias, batch norm, ReLU."""
    conv = nn.Conv2d(channels, out, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU()]


def separable(channels: int, out: int, stride: int) -> list[nn.Module]:
    """Depthwise 3 x 3, then 1 x 1."""
    return [*convolution(channels, channels, stride, groups=channels), *convolution(channels, out, 1, size=1)]


class TinyModule(nn.Module):
    """float32 [n, 3, 96, 96] -> float32 [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        layers = convolution(3, 16, 2)
        for channels, out, stride in ((16, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1)):
            layers += separable(channels, out, stride)
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        scores: torch.Tensor = self.head(self.features(x).mean([2, 3]))
        return scores


class Tiny(Defined):
    """Random weights, statistics calibrated."""

    description: ClassVar[str] = "depthwise CNN, 3 x 96 x 96, random weights"
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"x": (1, 3, 96, 96)}

    def samples(self) -> Samples:
        """Made-up pictures."""
        return Samples({"x": pictures(32, 3, 96, 1)}, {"x": pictures(32, 3, 96, 2)})

    def architecture(self) -> nn.Module:
        """Twelve convolutions and a linear layer."""
        return TinyModule()

    def prepare(self, module: nn.Module, samples: Samples) -> None:
        """Batch norms get the pictures' statistics."""
        calibrate_batch_norms(module, samples.calibration["x"])
