"""`mbv2`: inverted residuals as in MobileNetV2 (Sandler et al., 2018), 3 x 224 x 224, width 1."""

from __future__ import annotations

from typing import ClassVar

import torch
from benchmarks.networks.nets.base import Defined, Samples, calibrate_batch_norms, pictures
from torch import nn

#: expansion, channels out, blocks, stride of the first
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _layer(channels: int, out: int, *, size: int = 1, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Module:
    conv = nn.Conv2d(channels, out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), *([nn.ReLU6()] if act else []))


class Inverted(nn.Module):
    """Expand, filter each channel, project; with a short cut where the shapes allow one."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = _layer(channels, inner) if expansion > 1 else nn.Identity()
        self.filter = _layer(inner, inner, size=3, stride=stride, groups=inner)
        self.project = _layer(inner, out, act=False)
        self.short = stride == 1 and channels == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [n, channels, h, w] -> [n, out, h / stride, w / stride]."""
        y: torch.Tensor = self.project(self.filter(self.expand(x)))
        return x + y if self.short else y


class MobileNetModule(nn.Module):
    """float32 [n, 3, 224, 224] -> float32 [n, 1000]."""

    def __init__(self) -> None:
        super().__init__()
        layers, channels = [_layer(3, 32, size=3, stride=2)], 32
        for expansion, out, blocks, first in _STAGES:
            for number in range(blocks):
                layers.append(Inverted(channels, out, 1 if number else first, expansion))
                channels = out
        self.features = nn.Sequential(*layers, _layer(channels, 1280))
        self.head = nn.Linear(1280, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        scores: torch.Tensor = self.head(self.features(x).mean([2, 3]))
        return scores


class MobileNet(Defined):
    """Random weights, statistics calibrated."""

    description: ClassVar[str] = "MobileNetV2-like, 3 x 224 x 224, random weights"
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"x": (1, 3, 224, 224)}

    def samples(self) -> Samples:
        """Made-up pictures."""
        return Samples({"x": pictures(24, 3, 224, 1)}, {"x": pictures(16, 3, 224, 2)})

    def architecture(self) -> nn.Module:
        """52 convolutions and a linear layer."""
        return MobileNetModule()

    def prepare(self, module: nn.Module, samples: Samples) -> None:
        """Batch norms get the pictures' statistics."""
        calibrate_batch_norms(module, samples.calibration["x"])
