"""`encoder`: a small transformer encoder over 64 tokens: 4 layers, 256 wide, 4 heads, pre-norm, GELU."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from benchmarks.networks.nets.base import Defined, Feeds, Samples
from torch import nn

_WORDS, _TOKENS, _WIDTH, _HEADS, _LAYERS, _CLASSES = 1000, 64, 256, 4, 4, 10


class Layer(nn.Module):
    """Attention and two linear layers, each beside a short cut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.mix, self.out = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.mlp = nn.Sequential(nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [n, tokens, width] -> the same shape."""
        rows, tokens, width = x.shape
        mixed = self.mix(self.norm_attention(x)).chunk(3, dim=-1)
        query, key, value = (part.reshape(rows, tokens, _HEADS, width // _HEADS).transpose(1, 2) for part in mixed)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(attended.transpose(1, 2).reshape(rows, tokens, width))
        y: torch.Tensor = x + self.mlp(self.norm_mlp(x))
        return y


class EncoderModule(nn.Module):
    """int64 [n, 64] -> float32 [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(_WORDS, _WIDTH)
        self.places = nn.Parameter(torch.randn(_TOKENS, _WIDTH))
        self.layers = nn.Sequential(*(Layer() for _ in range(_LAYERS)))
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(_WIDTH, _CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Class scores."""
        x = self.layers(self.words(tokens) + self.places)
        scores: torch.Tensor = self.head(self.norm(x).mean(1))
        return scores


class Encoder(Defined):
    """Random weights; layer norms keep the activations sane by themselves."""

    description: ClassVar[str] = "transformer encoder, 4 layers, 64 tokens, 256 wide, random weights"
    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"tokens": (1, _TOKENS)}

    def samples(self) -> Samples:
        """Tokens as frequent as words are: a few very often, most of them seldom."""
        return Samples(_text(64, 1), _text(32, 2))

    def architecture(self) -> nn.Module:
        """Four layers between an embedding and a linear layer."""
        return EncoderModule()

    def prepare(self, module: nn.Module, samples: Samples) -> None:
        """Random weights do as they are."""


def _text(count: int, seed: int) -> Feeds:
    chances = 1 / np.arange(1, _WORDS + 1)
    draws = np.random.default_rng(seed).choice(_WORDS, (count, _TOKENS), p=chances / chances.sum())
    return {"tokens": draws.astype(np.int64)}
