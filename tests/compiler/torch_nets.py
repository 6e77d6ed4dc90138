"""Small torch modules to compile, and `torch` itself for tests: imported only where it is installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["nn", "torch"]


class Cnn(nn.Module):
    """Convolution, batch norm, dropout, and a head that does not mind the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        return self.head(self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


class Tagger(nn.Module):
    """Tokens and a mask, an LSTM and attention; outputs of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, tokens: Any, mask: Any = None, *, scale: float = 2.0) -> Any:
        steps, _ = self.lstm(self.embed(tokens))
        mixed = self.block(steps, src_key_padding_mask=mask)
        return {"tags": mixed * scale, "pooled": (mixed.mean(1), None), "tokens": tokens}


class OneWay(nn.Module):
    """Goes one way or the other by a value."""

    def forward(self, x: Any) -> Any:
        if x.sum() > 0:
            return x * 2
        return x


class Eigen(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.linalg.eigh(x)[0]


def cnn() -> Any:
    """With running statistics that are not those it starts with."""
    torch.manual_seed(3)
    made = Cnn()
    made(torch.randn(16, 3, 8, 8) * 2 + 1)
    return made


class Steps(nn.Module):
    """A recurrent net whose axis 0 counts steps of time, with its state as an input and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4)

    def forward(self, x: Any, h: Any, c: Any) -> Any:
        return self.lstm(x, (h, c))


class Fixed(nn.Module):
    """Takes a fixed number of rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Any) -> Any:
        return x.reshape(self.rows, 6).cumsum(1) if self.rows else torch.stack([row * 2 for row in x])


class Pieces(nn.Module):
    """Gives its input, a constant, and one thing twice, under names that stand in the graph already."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.arange(3.0))

    def forward(self, x: Any, *, y: Any, **_: Any) -> Any:
        total = x + y.to(x.dtype)
        return {"add": total, "x": x, "again": total, "kept": self.kept}


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.yes, self.no = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Any) -> Any:
        return torch.cond(x.sum() > 0, self.yes, lambda x: self.no(x) - 1, (x,))


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.seen += 1
        return x * self.seen


class Size(nn.Module):
    def forward(self, x: Any) -> Any:
        return x, 3


class Spectrum(nn.Module):
    """Gives complex numbers."""

    def forward(self, x: Any) -> Any:
        return torch.fft.rfft(x)
