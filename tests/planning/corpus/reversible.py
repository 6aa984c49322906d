"""Reversible nets in plain arithmetic and of the package's couplings, mixed with what is not invertible."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from planning.corpus.registry import net
from torch import Tensor, nn

import revgraph as rg


def rows(width: int = 12) -> tuple[Tensor]:
    return (torch.randn(4, width),)


def function(width: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 9), nn.GELU(), nn.Linear(9, width))


@net(rows)
class ReversibleResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.ModuleList(map(function, [6] * 3)), nn.ModuleList(map(function, [6] * 3))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        for f, g in zip(self.f, self.g, strict=True):
            a = a + f(b)
            b = b + g(a)
        return self.head(torch.cat([a, b], -1))


@net(lambda: (torch.randn(2, 4, 8, 8),))
class ReversibleImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.f = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1)) for c in (4, 4, 16, 16)
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        a = a + self.f[0](b)
        b = b + self.f[1](a)
        a, b = F.pixel_unshuffle(a, 2), F.pixel_unshuffle(b, 2)
        a = a + self.f[2](b)
        b = b + self.f[3](a)
        return torch.cat([a, b], 1).mean((2, 3))


@net(rows)
class LeapfrogSteps(nn.Module):
    """Hamiltonian dynamics: weights used forth and transposed back."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(6, 6) * 0.4), nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        y, z = x.split(6, 1)
        for _ in range(3):
            z = z - 0.1 * torch.tanh(y @ self.w + self.b) @ self.w.t()
            y = y + 0.1 * torch.tanh(z @ self.w + self.b) @ self.w.t()
        return torch.cat((y, z), 1)


@net(lambda: (torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 6, requires_grad=True)))
class ThreeStreams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList(function() for _ in range(6))
        self.bend = nn.Linear(6, 6)

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        early = a
        for i in range(2):
            a = a + self.f[3 * i](torch.cat([b, c], 0)[:4])
            b = b - self.f[3 * i + 1](c) * 0.5
            c = self.f[3 * i + 2](a + early) - c
            if not i:
                b = torch.sigmoid(self.bend(b))
        return torch.cat([a, b], 1), c + early


@net(rows)
class PackageCouplings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.split, self.join = rg.Split(2), rg.Concatenate()
        self.one = rg.Additive(function(), function())
        self.two = rg.Affine(nn.Linear(6, 12))
        self.three = rg.Additive(function())

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.split(x)
        a, b = self.one(a, b)
        a = self.two(a, b)
        b = self.three(b, a)
        return self.join(a, b)


@net(lambda: (torch.randint(15, (2, 6)),))
class ReversibleTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(15, 16)
        self.attend = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(4))
        self.feed = nn.ModuleList(function(8) for _ in range(2))
        self.head = nn.Linear(16, 15)

    def forward(self, ids: Tensor) -> Tensor:
        a, b = self.embed(ids).chunk(2, -1)
        for i in range(2):
            y = self.norms[2 * i](b)
            a = a + self.attend[i](y, y, y, need_weights=False)[0]
            b = b + self.feed[i](self.norms[2 * i + 1](a))
        return self.head(torch.cat([a, b], -1))


@net(rows)
class FirstTargetsHeavy(nn.Module):
    """The target of the first coupling is the input itself, and its function has heavy operators."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.ModuleList(nn.Sequential(nn.Linear(12, 12), nn.Tanh()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.f[0](x.sin())
        z = y + self.f[1](x)
        return z + self.f[2](y)


@net(rows)
class BlocksWithoutAName(nn.Module):
    """Residual blocks inside a container that is called as a whole, and a coupling in place."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = function(12), function(12)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x += self.f(x.sin())
        x = torch.add(x, self.g(x), alpha=0.5)
        x = x.view(4, 2, 6).transpose(0, 1).reshape(2, 4, 6)
        a, b = x.unbind(0)
        a = a + b.sigmoid()
        return torch.stack([b, a]).flip(0)


@net(lambda: (torch.randn(2, 5, 8),))
class ChunkedFeeds(nn.Module):
    """A feed-forward in chunks of the length, as in Reformer."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = function(4), function(4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split(4, -1)
        a = a + torch.cat([self.f(each) for each in b.chunk(2, 1)], 1)
        return torch.cat([a, b + self.g(a)], -1)
