"""`r18`: basic residual blocks as in ResNet-18 (He et al., 2015), 3 x 224 x 224."""

from __future__ import annotations

from typing import ClassVar

import torch
from benchmarks.networks.nets.base import Defined, Samples, calibrate_batch_norms, pictures
from torch import nn

_BLOCKS = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))  # channels out, stride


class Basic(nn.Module):
    """Two 3 x 3 convolutions beside a short cut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out))
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        changes = stride != 1 or channels != out
        down = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.short: nn.Module = down if changes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [n, channels, h, w] -> [n, out, h / stride, w / stride]."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.short(x))


class ResNetModule(nn.Module):
    """float32 [n, 3, 224, 224] -> float32 [n, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        layers.append(nn.MaxPool2d(3, 2, 1))
        channels = 64
        for out, stride in _BLOCKS:
            layers.append(Basic(channels, out, stride))
            channels = out
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        scores: torch.Tensor = self.head(self.features(x).mean([2, 3]))
        return scores


class ResNet(Defined):
    """Random weights, statistics calibrated."""

    description: ClassVar[str] = "ResNet-18-like, 3 x 224 x 224, random weights"
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"x": (1, 3, 224, 224)}

    def samples(self) -> Samples:
        """Made-up pictures."""
        return Samples({"x": pictures(24, 3, 224, 1)}, {"x": pictures(16, 3, 224, 2)})

    def architecture(self) -> nn.Module:
        """20 convolutions and a linear layer."""
        return ResNetModule()

    def prepare(self, module: nn.Module, samples: Samples) -> None:
        """Batch norms get the pictures' statistics."""
        calibrate_batch_norms(module, samples.calibration["x"])
